"""Followers of items, against counts by hand and by brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from recbole_llamarec.retrieval.neighbours import (
    PRIOR_COUNT,
    SMOOTHING,
    Neighbours,
    training_sequences,
)

LEAST = 360360  # a multiple of every step that a history of 14 items can have
SEQUENCES = {1: np.array([1, 2, 3]), 2: np.array([1, 3, 4]), 3: np.array([5, 1, 3])}


ITEMS = np.arange(1, 7)


def test_followers_stand_in_the_order_of_their_counts():
    neighbours = Neighbours(SEQUENCES, 7, n_recent=2, n_followers=2, window=5)
    # behind item 1: item 3 counts 1/2 + 1 + 1, item 2 counts 1, item 4 counts 1/2
    assert neighbours.of(1, ITEMS) == [3, 2]
    assert neighbours.of(1, [4, 2]) == [2, 4]
    assert neighbours.of(6, ITEMS) == neighbours.of(1, []) == []
    assert neighbours.of(1, ITEMS, user=2) == [3, 2]  # 3/2 against 1
    assert neighbours.of(1, [3, 4], user=2) == [3]  # nobody else chose item 4
    assert neighbours.of(1, ITEMS, user=99) == [3, 2]


def test_items_that_the_catalogue_does_not_have_follow_nothing():
    neighbours = Neighbours(SEQUENCES, 7, n_recent=2, n_followers=9, window=5)
    assert neighbours.of(1, [7, 3, 8]) == [3]
    assert neighbours.counts(1, np.array([7, 3, 0])).tolist() == [0, 2.5, 0]


def test_shares_are_those_of_all_followers_of_the_last_items():
    neighbours = Neighbours(SEQUENCES, 7, n_recent=2, n_followers=2, window=5)
    others = np.array([3, 2, 4, 6])
    of_one = np.array([0.625, 0.25, 0.125, 0]) + SMOOTHING
    assert neighbours.summed_shares([1], others) == pytest.approx(of_one)
    of_two = of_one + [0, 0, 1, 0]  # item 4 alone followed item 3
    assert neighbours.summed_shares([2, 1, 3], others) == pytest.approx(of_two)
    of_others = of_one - [0.25, 0, 0.125, 0]  # a whole of 4, less what user 2 has added
    assert neighbours.summed_shares([1], others, user=2) == pytest.approx(of_others)
    assert neighbours.summed_shares([6], np.array([1])) == [SMOOTHING]


def test_scores_are_shares_smoothed_by_popularity():
    neighbours = Neighbours(SEQUENCES, 7, n_recent=2, n_followers=2, window=5)
    pool = np.array([3, 2, 6, 9])  # nobody has chosen the last two, and one is of no catalogue
    popularity = np.array([4, 2, 1, 1]) / (9 + 7)
    of_one = (np.array([2.5, 1, 0, 0]) + PRIOR_COUNT * popularity) / (4 + PRIOR_COUNT)
    of_three = (np.array([0, 0, 0, 0]) + PRIOR_COUNT * popularity) / (1 + PRIOR_COUNT)
    found = neighbours.scores([[5, 1, 3], [1], [6], []], np.tile(pool, (4, 1)))
    expected = [(of_one + of_three) / 2, of_one, popularity, popularity]
    assert np.exp(found) == pytest.approx(np.array(expected))


def test_evidence_is_the_last_items_with_the_candidates_that_followed_them():
    neighbours = Neighbours(SEQUENCES, 7, n_recent=2, n_followers=1, window=5)
    assert neighbours.before([2, 5, 1], ITEMS) == [5, 1, 1, 3]
    assert neighbours.before([2, 5, 1], [2, 4]) == [5, 1, 2]
    assert neighbours.before([2, 5, 1, 3], [4]) == [1, 4, 3, 4]
    assert neighbours.before([], ITEMS) == []


@pytest.mark.parametrize(("user", "window"), [(None, 5), (0, 5), (7, 2), (7, 99)])
def test_counts_equal_brute_force(user, window):
    generator = np.random.default_rng(3)
    sequences = {
        u: generator.integers(1, 20, generator.integers(1, 15)) for u in range(12)
    }  # items repeat
    found = Neighbours(sequences, 20, n_recent=1, n_followers=30, window=window)
    for item in range(1, 20):
        counts: Counter[int] = Counter()
        for owner, sequence in sequences.items():
            if owner == user:
                continue
            for place in np.flatnonzero(sequence == item):
                for step in range(1, window + 1):
                    if place + step < len(sequence):
                        counts[int(sequence[place + step])] += LEAST // step  # whole numbers
        expected = sorted(counts, key=lambda other: (-counts[other], other))
        assert found.of(item, np.arange(1, 20), user) == expected


def test_sequences_are_put_together_from_the_rows_of_prefixes():
    users = np.array([4, 4, 4, 9])
    targets = np.array([2, 3, 4, 8])
    histories = np.array([[1, 0, 0], [1, 2, 0], [1, 2, 3], [5, 6, 7]])
    found = training_sequences(users, targets, histories, np.array([1, 2, 3, 3]))
    assert {user: sequence.tolist() for user, sequence in found.items()} == {
        4: [1, 2, 3, 4],
        9: [5, 6, 7, 8],
    }
    assert training_sequences(users[:0], targets[:0], histories[:0], users[:0]) == {}
