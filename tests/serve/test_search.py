"""Search by title."""

from __future__ import annotations

import random

import pytest
from helpers import titles

from recbole_llamarec.serve.search import TitleSearch, fold

TITLES = [
    "",
    "Star Wars (1977)",
    "Amélie",
    "Godfather, The (1972)",
    "A Star is Born",
    "Lodestar",
    "Heat",
]
COUNTS = [0, 5, 1, 7, 9, 3, 2]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("star", [1, 4, 5]),  # begins with it, has a word that does, holds it
        ("  STAR   wars", [1]),
        ("amelie", [2]),
        ("the godfather", [3]),  # all its words, in any order
        ("(1972)", [3]),
        ("", [4, 3, 1, 5, 6, 2]),  # the most frequent first
        ("heat", [6]),
        ("nothing", []),
        ("star heat", []),
        ("\n", [4, 3, 1, 5, 6, 2]),
    ],
)
def test_titles_are_found(query, found):
    search = TitleSearch(TITLES, COUNTS)
    assert search.find(query, 10) == found
    assert search.find(query, 1) == found[:1]


def test_all_and_only_the_titles_with_the_words_are_found():
    names, generator = ["", *titles(200)], random.Random(1)
    search = TitleSearch(names, range(201))
    for _ in range(200):
        words = generator.choice(names[1:]).lower().split()
        part = generator.choice(words)[: generator.randint(1, 6)]
        query = f"{part} {generator.choice(words)}" if generator.random() < 0.5 else part
        expected = {
            item for item in range(1, 201) if all(w in names[item].lower() for w in query.split())
        }
        assert set(search.find(query, 300)) == expected


def test_folding_leaves_what_counts():
    assert fold(" Ünïted\tSTATES\n of ﬁlm ") == "united states of film"
