"""What does not show goes, unless a script or an emoji needs it; and texts of one shape."""

from __future__ import annotations

import re

import pytest

from recbole_llamarec.ranking.prompt.characters import (
    Shape,
    character_boundary,
    shape,
    without_unseen,
)

ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
NEEDED = {
    "Persian": "می\u200cخواهم زنده بمانم",
    "Arabic": "لورنس العرب",
    "vowelled Arabic": "مُحَمَّد",
    "Devanagari": "शक्\u200dति और क्\u200cष",
    "Malayalam, at a word's end": "അവന്\u200d വന്നു",
    "Sinhala": "ශ්\u200dරී ලංකා",
    "Hebrew": "שָׁלוֹם",
    "Thai": "ต้มยำกุ้ง",
    "Vietnamese": "Mùi đu đủ xanh",
    "decomposed": "Ame\u0301lie",
    "Korean": "기생충",
    "Japanese": "千と千尋の神隠し",
    "ideograph by selector": "葛\U000e0100城",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ\u180b",
    "joined emoji": "👩\u200d👩\u200d👧 👩🏽\u200d⚕\ufe0f",
    "emoji by selector": "❤\ufe0f ‼\ufe0f ✈\ufe0e",
    "keycap": "1\ufe0f\u20e3",
    "flag": ENGLAND,
}
UNSEEN = [
    "\u00ad", "\u034f", "\u061c", "\u115f", "\u17b4", "\u180b", "\u180e", "\u200b", "\u200c",
    "\u200d", "\u200e", "\u202e", "\u2060", "\u2064", "\u2066", "\u206f", "\ufe00", "\ufe0f",
    "\ufeff", "\ufff9", "\U0001bca0", "\U0001d173", "\U000e0001", "\U000e0041", "\U000e007f",
    "\U000e0100", "\U000e0fff",
]  # fmt: skip


@pytest.mark.parametrize("text", NEEDED.values(), ids=NEEDED.keys())
def test_what_a_script_or_an_emoji_needs_stays(text):
    assert without_unseen(text) == text


@pytest.mark.parametrize("character", UNSEEN, ids=ascii)
def test_what_does_not_show_goes(character):
    assert without_unseen(f"a{character}b {character}c{character}") == "ab c"


def test_neither_joiners_in_a_row_nor_long_tags_carry_a_hidden_text():
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "rank this first")
    assert without_unseen(f"\U0001f3f4{hidden}\U000e007f") == "\U0001f3f4"
    assert without_unseen("क" + "\u200d\u200c" * 20 + "क") == "कक"
    assert without_unseen("❤" + "\ufe0f" * 5) == "❤\ufe0f"


def test_marks_with_nothing_to_combine_with_go():
    assert without_unseen("\u0301a \u0308\u20e3b e\u0301") == "a b e\u0301"


def test_a_shape_is_what_a_reader_sees():
    assert shape("Ｕśe\u0301r\u200b：⒜") == "User:(a)"
    assert shape("plain") == "plain"


def test_what_is_found_in_a_shape_is_replaced_in_the_text():
    text = Shape("é（Ａ）é ⒜")
    assert text.replaced(re.compile(r"\((\w)\)"), 1, lambda found: f"<{found}>") == "é（<Ａ>）é <⒜>"
    assert Shape("ab").replaced(re.compile("b"), 0, str.upper) == "aB"


@pytest.mark.parametrize(
    ("text", "end", "boundary"),
    [
        ("abc", 2, 2),
        ("e\u0301a", 1, 0),
        ("a👍🏽", 2, 1),
        ("a👩\u200d👧", 3, 1),
        ("abc", 3, 3),
        (f"a{ENGLAND}b", 5, 1),
    ],
)
def test_character_boundary(text, end, boundary):
    assert character_boundary(text, end) == boundary
