"""Characters that a reader does not see, and what a text looks like without them.

A title may hold characters without a shape of their own: joiners, marks of direction, soft hyphens,
variation selectors, tags. :func:`without_unseen` keeps them where a script or an emoji needs them,
and nowhere else. :class:`Shape` is a text as it looks: two texts of one shape read alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import takewhile

ZERO_WIDTH_JOINER = "\u200d"
BLANKS = "\u2800\u3164\uffa0"  # they look like a space, but are none to Python

# Unicode's Default_Ignorable_Code_Point without BLANKS, and the marks of annotations
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
# Scripts whose letters join or form clusters: Arabic to Sinhala, Tibetan to Myanmar, Khmer and
# Mongolian, further Indic ones, Arabic's presentation forms, Brahmi and its kin, Adlam
_JOINING = (
    "\u0600-\u0dff\u0f00-\u109f\u1780-\u18af\ua800-\ua8ff\uaa00-\uaadf\ufb50-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00011fff\U0001e900-\U0001e95f"
)
# Behind these a joiner is needed at the end of a word, too
_VIRAMA = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca\u1039\u103a\u17d2"
_EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f"
    "\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_IDEOGRAPH = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MONGOLIAN = "\u1820-\u18aa"
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"  # of England, Texas
_NEEDED = "|".join(
    [
        _FLAG,
        f"(?<=[{_JOINING}])[\u200c\u200d](?=[{_JOINING}])",
        f"(?<=[{_VIRAMA}])[\u200c\u200d]",
        f"(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])",
        f"(?<=[{_EMOJI}])[\ufe0e\ufe0f]",
        "(?<=[0-9#*])\ufe0f(?=\u20e3)",
        f"(?<=[{_IDEOGRAPH}])[\ufe00-\ufe02\U000e0100-\U000e01ef]",
        f"(?<=[{_MONGOLIAN}])(?:[\u180b-\u180d\u180f]|\u180e(?=[\u1820\u1821]))",
    ]
)
_NEEDED_OR_UNSEEN = re.compile(f"({_NEEDED})|[{_UNSEEN}]+?")
_TAGS = range(0xE0020, 0xE0080)
_SKIN_TONES = range(0x1F3FB, 0x1F400)


def without_unseen(text: str) -> str:
    """The text without characters that have no shape, but for those that a script or emoji needs.

    Applied until it changes nothing, it leaves joiners between letters that join and between
    emoji, and the selectors and tags that choose an emoji, an ideograph or a flag. Combining marks
    at the beginning of a word, which have nothing to combine with, go too.

    Args:
        text: with single spaces between words.
    """
    if text.isascii():
        return text
    words = _NEEDED_OR_UNSEEN.sub(lambda match: match[1] or "", text).split(" ")
    return " ".join(word[_n_leading_marks(word) :] for word in words)


def _n_leading_marks(word: str) -> int:
    marks = takewhile(lambda character: unicodedata.category(character)[0] == "M", word)
    return sum(1 for _ in marks)


@lru_cache(maxsize=65536)
def _shape_of(character: str) -> str:
    """What a character looks like, plainly: ``A`` for a full-width or accented one."""
    return "".join(
        part
        for part in unicodedata.normalize("NFKD", character)
        if unicodedata.category(part)[0] != "M" and not re.match(f"[{_UNSEEN}]", part)
    )


class Shape:
    """A text as it looks: compatibility forms spelt out, without marks and unseen characters.

    Args:
        text: any text.

    Attributes:
        text: as it looks.
    """

    def __init__(self, text: str) -> None:
        self._original = text
        self._places: range | list[int] = range(len(text))  # of each character in the original
        self.text = text
        if not text.isascii():
            shapes = [_shape_of(character) for character in text]
            self.text = "".join(shapes)
            self._places = [place for place, shape in enumerate(shapes) for _ in shape]

    def replaced(
        self, pattern: re.Pattern[str], group: int, replacement: Callable[[str], str]
    ) -> str:
        """The original text with what a pattern finds in its shape replaced.

        Args:
            pattern: of shapes.
            group: what of each match is replaced; it must not be empty.
            replacement: takes and gives a part of the original text.
        """
        parts, end = [], 0
        for match in pattern.finditer(self.text):
            first = self._places[match.start(group)]
            if first < end:
                continue  # two matches within one character
            parts.append(self._original[end:first])
            end = self._places[match.end(group) - 1] + 1
            parts.append(replacement(self._original[first:end]))
        return "".join([*parts, self._original[end:]])


def shape(text: str) -> str:
    """A text as it looks."""
    return Shape(text).text


def character_boundary(text: str, end: int) -> int:
    """Return the last position up to ``end`` that parts no character from its combining marks.

    A joined emoji (U+200D), an emoji with its skin tone and a flag of tags count as one character.
    """
    while 0 < end < len(text) and (
        unicodedata.category(text[end]).startswith("M")
        or ZERO_WIDTH_JOINER in text[end - 1 : end + 1]
        or ord(text[end]) in _SKIN_TONES
        or ord(text[end]) in _TAGS
    ):
        end -= 1
    return end
