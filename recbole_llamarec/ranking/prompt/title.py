"""Cleaning and shortening of item titles, so that no title can pass for a part of the prompt.

The rules of :func:`clean_title`, applied until none of them changes the text any more:

1. Lone surrogates become U+FFFD.
2. Characters without a shape (zero width, direction, soft hyphens, selectors, tags) go, but for
   those that a script or an emoji needs, and so do combining marks that have nothing to combine
   with.
3. Whitespace, line breaks, control characters and U+2581 (SentencePiece's space mark) become
   single spaces; the ends are stripped.
4. A special or added token of the tokenizer (``<|im_end|>``, ``</s>``) gets a space after its
   first character. Where that gives such a token again, or the token is one character long, a
   space takes its place.
5. A heading of the template, that is the words before a colon in ``prompt_text`` (``User
   history:``), loses its colon, in upper or lower case, also behind or within a word. Runs of two
   or more ``#`` go; the single one of ``C#`` and ``#1`` stays.
6. An item marker of the template for one of the labels or for a history number, ``(B)``, ``( 7 )``,
   gets square brackets. Other punctuation of a marker (the full stop of ``B.``) goes, and so do
   brackets where the template's own markers are square. Every other bracket stays: ``(1995)``.
7. What stands between two titles, where it is punctuation (likelihood's ``;``), becomes a comma;
   a comma that stands between titles becomes a semicolon.

Rules 5 to 7 look at the shape of the text: full-width and accented letters count as plain ones.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recbole_llamarec.ranking.prompt.characters import (
    BLANKS,
    Shape,
    character_boundary,
    shape,
    without_unseen,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SPACES = re.compile(rf"[\s\x00-\x1f\x7f-\x9f\u2581{BLANKS}]+")
SURROGATES = re.compile(r"[\ud800-\udfff]")
HASHES = re.compile(r"##+")
COLONS = ":\u02d0\u02f8\u0589\u05c3\u2236\ua789"  # and what looks like one
HEADING_IN_TEMPLATE = re.compile(rf"(\w[\w '&/-]*?) ?[{COLONS}]")
UNTITLED = "unknown item"  # shown for an item whose title is empty after cleaning


@dataclass(frozen=True)
class TitleRules:
    """The compiled rules of :func:`clean_title` for one template, label set and tokenizer."""

    tokens: re.Pattern[str] | None
    token_replacements: dict[str, str]
    headings: re.Pattern[str] | None
    markers: tuple[re.Pattern[str], ...]
    marker_table: dict[int, str]
    separator: re.Pattern[str] | None
    separator_replacement: str

    @classmethod
    def build(
        cls,
        text: str,
        history_item: str,
        candidate_item: str,
        labels: Sequence[str],
        max_history: int,
        special_texts: Iterable[str] = (),
        separator: str = "",
    ) -> "TitleRules":
        """Compile the rules from the template's fields.

        Args:
            text: ``prompt_text``; its headings are the words before a colon.
            history_item: ``prompt_history_item``.
            candidate_item: ``prompt_candidate_item``.
            labels: The candidates' labels.
            max_history: History numbers 1 to this one count as markers.
            special_texts: Texts that the tokenizer reads as one special or added token.
            separator: What stands between two titles; spaces and words are left in titles.

        Raises:
            ValueError: A marker has no punctuation by which it could be told from a word.
        """
        literal = shape(re.sub(r"\{\w+\}", "\n", text))
        headings = [SPACES.sub(" ", h) for h in HEADING_IN_TEMPLATE.findall(literal)]
        numbers = [str(n) for n in range(1, max_history + 1)]
        sides = [
            (_marker_sides(candidate_item, "label"), labels),
            (_marker_sides(history_item, "number"), numbers),
        ]
        shown = "".join("".join(pair) for pair, _ in sides if pair)
        square = {ord("("): "[", ord(")"): "]"} if not set("[]") & set(shown) else {}
        special = sorted({t for t in special_texts if t.strip()}, key=len, reverse=True)
        tokens = re.compile(_any_of(special)) if special else None
        return cls(
            tokens=tokens,
            token_replacements={t: _broken_up(t, tokens) for t in special} if tokens else {},
            headings=re.compile(rf"(?:{_any_of(headings)})((?: ?[{COLONS}])+)", re.IGNORECASE)
            if headings
            else None,
            markers=tuple(_marker_pattern(*pair, names) for pair, names in sides if pair and names),
            marker_table={ord(c): "" for c in shape(shown) if not c.isalnum()} | square,
            separator=_separator_pattern(separator),
            separator_replacement=";" if "," in separator else ",",
        )


def _any_of(texts: Iterable[str]) -> str:
    """A regular expression for any of the texts, the longest first."""
    return "|".join(re.escape(t) for t in sorted(set(texts), key=len, reverse=True))


def _broken_up(token: str, tokens: re.Pattern[str]) -> str:
    """The token with a space after its first character, or a space if that cannot break it."""
    broken = SPACES.sub(" ", f"{token[0]} {token[1:]}")
    return " " if len(token) == 1 or token[1].isspace() or tokens.search(broken) else broken


def _marker_sides(item: str, name: str) -> tuple[str, str] | None:
    """The text that touches ``{name}`` on its left and right in an item format, if it is there."""
    found = re.search(rf"([^\s{{}}]*)\{{{name}\}}([^\s{{}}]*)", item)
    if not found:
        return None
    left, right = found.groups()
    if (left + right).isalnum() or not left + right:
        key = "prompt_candidate_item" if name == "label" else "prompt_history_item"
        raise ValueError(
            f"{key} is {item!r}: {{{name}}} has no punctuation beside it, so that a title's own "
            f"words would read as a marker; write it as ({{{name}}}) or {{{name}}}."
        )
    return left, right


def _marker_pattern(left: str, right: str, names: Sequence[str]) -> re.Pattern[str]:
    """The pattern of an item marker; one that is open at a side must stand as a word of its own."""
    left, right = shape(left), shape(right)
    core = rf"{re.escape(left)} ?(?:{_any_of(map(shape, names))}) ?{re.escape(right)}"
    closed = all(any(not c.isalnum() for c in side) for side in (left, right))
    return re.compile(core if closed else rf"(?<!\w){core}(?!\w)")


def _separator_pattern(separator: str) -> re.Pattern[str] | None:
    """The pattern of a separator; ``None`` where it is no punctuation by which titles are told.

    The hyphen of ``X-Men`` is not that of `` - ``.
    """
    core = SPACES.sub(" ", shape(separator)).strip()
    if not core or any(c.isalnum() for c in core):
        return None
    before = r"(?<!\S)" if separator[0].isspace() else ""
    behind = r"(?!\S)" if separator[-1].isspace() else ""
    return re.compile(before + re.escape(core) + behind)


def special_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts that a tokenizer reads as special or added tokens, whitespace ones left out.

    Tokens of one character count only where they are special: others are ordinary letters.
    """
    tokens = tokenizer.added_tokens_decoder.values()
    return [t.content for t in tokens if len(t.content.strip()) > 1 or (t.special and t.content)]


def clean_title(title: str, rules: TitleRules) -> str:
    """Return the title with everything removed that the model could take for prompt structure.

    The function is idempotent, and every title comes out without the pieces named in the rules
    at the head of this module.

    Args:
        title: Any text.
        rules: The rules of the template, the labels and the tokenizer.

    Returns:
        The cleaned title; empty if nothing is left.
    """
    title = SURROGATES.sub("\ufffd", title)
    # The passes end: each one removes a character, a marker's bracket or the joint of a token.
    while (cleaned := _clean_once(title, rules)) != title:
        title = cleaned
    return cleaned


def _clean_once(title: str, rules: TitleRules) -> str:
    title = without_unseen(SPACES.sub(" ", title).strip())
    if rules.tokens:
        title = rules.tokens.sub(lambda m: rules.token_replacements[m[0]], title)
    if rules.headings:
        title = Shape(title).replaced(rules.headings, 1, lambda colons: "")
    title = Shape(title).replaced(HASHES, 0, lambda hashes: " ")
    for pattern in rules.markers:
        title = Shape(title).replaced(pattern, 0, lambda marker: _unmarked(marker, rules))
    if rules.separator:
        title = Shape(title).replaced(rules.separator, 0, lambda _: rules.separator_replacement)
    return SPACES.sub(" ", title).strip()


def _unmarked(marker: str, rules: TitleRules) -> str:
    """An item marker without the punctuation that makes it one; the rest stays as written."""
    characters = [(character, shape(character)) for character in marker]
    return "".join(
        looks.translate(rules.marker_table) if set(map(ord, looks)) & set(rules.marker_table) else c
        for c, looks in characters
    )


def shorten_titles(
    titles: Sequence[str],
    count_tokens: Callable[[list[str]], list[int]],
    limit: int,
    clean: Callable[[str], str],
) -> list[str]:
    """Cut titles to a beginning of ``limit`` tokens, or of fewer where no cut gives just so many.

    The cut is made in the text and not in the token ids, so that tokenising the prompt's text
    gives the same ids again. It is searched for in all titles together, one batch of the tokenizer
    a round, where the tokens seen so far place it; every third round halves the range instead, so
    that uneven titles take few rounds too.

    Args:
        titles: Titles that are too long.
        count_tokens: Gives the number of tokens of each text of a list.
        limit: Most tokens of a title.
        clean: The cleaning function, since a cut may make a marker of what was none.

    Returns:
        The cut titles; empty where not even the first character fits.
    """

    def beginning(title: str, length: int) -> str:
        return clean(title[: character_boundary(title, length)])

    # (characters, tokens) of the longest beginning seen that fits, the shortest that does not
    fits = [(0, 0)] * len(titles)
    fails = list(zip(map(len, titles), count_tokens(list(titles)), strict=True))
    turn = 0
    while searched := [
        i for i in range(len(titles)) if fits[i][1] < limit and fails[i][0] - fits[i][0] > 1
    ]:
        lengths = []
        for i in searched:
            (low, low_tokens), (high, high_tokens) = fits[i], fails[i]
            share = 0.5 if turn % 3 == 2 else (limit - low_tokens) / (high_tokens - low_tokens)
            lengths.append(min(max(low + round((high - low) * share), low + 1), high - 1))
        tried = [beginning(titles[i], length) for i, length in zip(searched, lengths, strict=True)]
        for i, length, tokens in zip(searched, lengths, count_tokens(tried), strict=True):
            (fits if tokens <= limit else fails)[i] = length, tokens
        turn += 1
    return [beginning(title, length) for title, (length, _) in zip(titles, fits, strict=True)]


def prepare_titles(
    titles: Sequence[str],
    rules: TitleRules,
    limit: int,
    encode_pieces: Callable[[list[str]], list[list[int]]],
) -> tuple[list[str], list[list[int]]]:
    """Clean, cut and tokenise all titles; an empty one becomes ``"unknown item"``.

    Args:
        titles: Any texts.
        rules: The cleaning rules.
        limit: Most tokens of a title, the space before it included.
        encode_pieces: Gives the token ids of texts as they are inside a prompt.

    Returns:
        The titles as they are shown, and the token ids of each behind a space.
    """

    def encode(texts: list[str]) -> list[list[int]]:
        return encode_pieces([f" {text}" for text in texts])

    shown = [clean_title(title, rules) or UNTITLED for title in titles]
    ids = encode(shown)
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    if long:
        logger.info(
            "%d of %d titles are longer than prompt_max_title_tokens: %d, and are cut",
            *(len(long), len(titles), limit),
        )
    cut = shorten_titles(
        [shown[i] for i in long],
        count_tokens=lambda texts: [len(row) for row in encode(texts)],
        limit=limit,
        clean=lambda text: clean_title(text, rules),
    )
    cut = [title or UNTITLED for title in cut]
    for i, title, row in zip(long, cut, encode(cut), strict=True):
        shown[i], ids[i] = title, row
    return shown, ids
