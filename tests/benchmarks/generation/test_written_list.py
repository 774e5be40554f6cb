"""The reading of a list of titles that a language model wrote."""

from __future__ import annotations

import pytest
from generation.written_list import parse_ranking, written_lines
from hypothesis import given
from hypothesis import strategies as st

FILMS = ["Toy Story (1995)", "Toy Story 2 (1999)", "Heat", "Help!"]


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("Heat", (2,)),
        ("  hEAT .", (2,)),
        ("1. Heat", (2,)),
        ("(C) Heat", (2,)),
        ("C) Heat", (2,)),
        ("3: “Heat”,", (2,)),
        ("- 1. (C) **Heat**", (2,)),
        ("Toy\tStory  (1995)", (0,)),
        ("2. toy story 2 (1999)", (1,)),
        ("help", (3,)),
        ("Toy Storry (1995)", (0,)),  # misspelt
        ("Toy Story 2 (1999", (1,)),  # cut off
        ("Toy Story 3 (1999)", ()),  # another number
        ("Toy Story", ()),
        ("Heat and Dust", ()),
        ("1.", ()),
    ],
)
def test_a_line_is_matched_with_a_title(line, order):
    parsed = parse_ranking(line, FILMS)
    assert parsed.order == order
    assert (parsed.n_unmatched, parsed.n_repeated) == (not order, 0)
    assert parsed.n_omitted == len(FILMS) - len(order)


def test_a_title_that_looks_like_a_list_mark_is_matched_as_it_stands():
    films = ["Days of Summer", "(500) Days of Summer", "M", "8½", "..."]
    assert parse_ranking("(500) Days of Summer\nM\n8½\n...", films).order == (1, 2, 3, 4)
    assert parse_ranking("1. (500) Days of Summer\n2. Days of Summer", films).order == (1, 0)


def test_equal_titles_are_matched_in_order():
    parsed = parse_ranking("Heat\nPsycho\nheat\nHeat", ["Psycho", "Heat", "HEAT"])
    assert parsed.order == (1, 0, 2)
    assert (parsed.n_unmatched, parsed.n_repeated, parsed.n_omitted) == (0, 1, 0)
    assert parsed.complete_order() == [1, 0, 2]


pieces = st.one_of(
    st.text(),
    st.sampled_from([*FILMS, "\n", "1. ", "(A) ", "- ", '"', "heat", "Toy Story 3", " ", "."]),
)


@given(
    text=st.lists(pieces, max_size=20).map("".join),
    films=st.lists(st.one_of(st.sampled_from(FILMS), st.text(max_size=8)), max_size=6),
)
def test_any_text_is_read_and_every_line_and_candidate_is_accounted_for(text, films):
    parsed = parse_ranking(text, films)
    assert len(set(parsed.order)) == len(parsed.order)
    assert set(parsed.order) <= set(range(len(films)))
    assert len(parsed.order) + parsed.n_omitted == len(films)
    n_lines = len(parsed.order) + parsed.n_unmatched + parsed.n_repeated
    assert n_lines == len(written_lines(text))
    assert sorted(parsed.complete_order()) == list(range(len(films)))
    assert parse_ranking(text, films) == parsed
