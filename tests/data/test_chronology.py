"""Sequences of choices from rows of windows and targets, against sequences by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_llamarec.data.chronology import ChoiceRows, Chronology, runs_of

# (user, window, target, time)
PREFIXES = [
    *[(4, [1], 2, 10), (4, [1, 2], 3, 20), (4, [1, 2, 3], 4, 30), (4, [2, 3, 4], 5, 40)],
    *[(9, [5, 6, 7], 8, 15), (9, [6, 7, 8], 5, 25)],  # its first rows are in no part; 5 again
]
SEQUENCES = {4: [1, 2, 3, 4, 5], 9: [5, 6, 7, 8, 5]}


def rows_of(rows, length: int = 3, parts=None) -> ChoiceRows:
    windows = np.zeros((len(rows), length), dtype=np.int64)
    for row, (_, window, _, _) in enumerate(rows):
        windows[row, : len(window)] = window
    columns = [np.array([row[i] for row in rows]) for i in (0, 2, 3)]
    users, targets, times = columns if rows else [np.empty(0, dtype=np.int64)] * 3
    lengths = np.array([len(row[1]) for row in rows], dtype=np.int64)
    parts = np.zeros(len(rows), dtype=np.int64) if parts is None else np.array(parts)
    return ChoiceRows(users, targets, windows, lengths, times, parts)


def sequences_of(chronology: Chronology) -> list[list[int]]:
    return [own.tolist() for own in chronology.sequences()]


def items_of(chronology: Chronology, user: int) -> list[int]:
    return chronology.items[chronology.starts[user] : chronology.starts[user + 1]].tolist()


ORDERS = {
    "user by user": range(6),
    "by time, users between each other": [0, 4, 1, 5, 2, 3],
    "backwards": range(5, -1, -1),
    "shuffled": [3, 5, 0, 2, 4, 1],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_every_choice_stands_once_whatever_the_order_of_rows(order):
    rows = [PREFIXES[i] for i in order]
    chosen = Chronology.of(rows_of(rows), n_users=11)
    assert sequences_of(chosen) == list(SEQUENCES.values())
    assert {user: items_of(chosen, user) for user in (4, 9)} == SEQUENCES
    assert items_of(chosen, 0) == items_of(chosen, 10) == []
    before = dict(zip(order, chosen.before.tolist(), strict=True))
    assert [before[i] for i in range(6)] == [1, 2, 3, 4, 3, 4]


def test_rows_of_one_time_follow_each_other_by_their_windows():
    rows = [(user, window, target, 7) for user, window, target, _ in PREFIXES]
    chosen = Chronology.of(rows_of([rows[i] for i in (3, 5, 0, 2, 4, 1)]), 10)
    assert sequences_of(chosen) == list(SEQUENCES.values())


def test_a_gap_between_windows_is_no_adjacency():
    rows = [(1, [1, 2], 3, 1), (1, [5, 6], 7, 5), (1, [7, 8], 9, 7), (1, [], 4, 9), (1, [4], 2, 9)]
    chosen = Chronology.of(rows_of(rows), 2)
    assert sequences_of(chosen) == [[1, 2, 3], [5, 6, 7, 8, 9], [4, 2]]
    assert chosen.before.tolist() == [2, 5, 7, 8, 9]
    assert chosen.follows.tolist() == [False, True, True, False, *[True] * 4, False, True]


def test_a_window_that_reaches_behind_a_gap_closes_it():
    rows = [(1, [1], 2, 1), (1, [4], 5, 4), (1, [2, 3, 4, 5], 6, 5)]
    chosen = Chronology.of(rows_of(rows, 4), 2)
    assert sequences_of(chosen) == [[1, 2, 3, 4, 5, 6]]
    assert chosen.before.tolist() == [1, 4, 5]


def test_parts_that_are_the_same_file_count_once():
    rows = [(1, [1], 2, 1), (1, [1, 2], 3, 2), (1, [1, 2], 3, 2)]
    chosen = Chronology.of(rows_of(rows, parts=[0, 1, 2]), 2)
    assert sequences_of(chosen) == [[1, 2, 3]]
    assert chosen.before.tolist() == [1, 2, 2]


def test_an_item_that_is_chosen_again_counts_again():
    rows = [(1, [3], 3, 1), (1, [3], 3, 2), (1, [3], 4, 3), (1, [4], 3, 4), (1, [3], 4, 5)]
    chosen = Chronology.of(rows_of(rows, 1), 2)
    assert sequences_of(chosen) == [[3, 3, 3, 4, 3, 4]]


def test_no_rows_are_no_choices():
    chosen = Chronology.of(rows_of([]), 3)
    assert chosen.sequences() == [] and chosen.starts.tolist() == [0, 0, 0, 0]
    assert runs_of(np.empty(0, dtype=int), np.empty(0, dtype=int))[1].tolist() == []


@pytest.mark.parametrize("kept", [1.0, 0.5])
@pytest.mark.parametrize("times", ["distinct", "tied", "none"])
def test_random_rows_give_the_runs_that_their_windows_cover(times, kept):
    generator = np.random.default_rng(0)
    for _ in range(60):
        length, spans, rows = int(generator.integers(1, 7)), [], []
        items = (generator.permutation(40)[: generator.integers(2, 16)] + 1).tolist()
        steps = generator.integers(times == "distinct", 3, len(items)) * (times != "none")
        for place in range(1, len(items)):
            if generator.random() <= kept:
                start = max(0, place - length)
                spans.append((start, place))
                rows.append((1, items[start:place], items[place], steps[:place].sum()))
        covered: list[list[int]] = []
        for start, end in spans:  # in their order
            if covered and start <= covered[-1][1]:
                covered[-1][1] = end
            else:
                covered.append([start, end])
        shuffled = [rows[i] for i in generator.permutation(len(rows))]
        found = Chronology.of(rows_of(shuffled, length), 2)
        expected = [items[start : end + 1] for start, end in covered]
        assert sorted(sequences_of(found)) == sorted(expected)


def test_runs_are_rows_whose_targets_follow_each_other():
    users, before = np.array([7, 2, 7, 7, 2, 7]), np.array([2, 5, 1, 6, 4, 2])
    order, runs = runs_of(users, before)
    assert order.tolist() == [2, 0, 5, 3, 4, 1]  # user 7 comes first in the rows
    assert runs.tolist() == [0, 0, 1, 2, 3, 3]


def test_prefixes_in_recboles_order_stay_where_they_are():
    order, runs = runs_of(np.array([3, 3, 3, 1, 1]), np.array([1, 2, 3, 1, 2]))
    assert order.tolist() == [0, 1, 2, 3, 4] and runs.tolist() == [0, 0, 0, 1, 1]
