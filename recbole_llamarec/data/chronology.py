"""Each user's choices in chronological order, put together from rows of windows and targets.

RecBole's sequential data has a row for each interaction: its item, the target, and the last items
before it, the window. Here these are one sequence a user again, in which every interaction stands
once, whatever the order of the rows, the split they are from, and the length of the windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from recbole_llamarec.data.windows import joined_windows

ROWS_AT_A_TIME = 2**16  # whose windows are compared in one go


@dataclass(frozen=True)
class ChoiceRows:
    """Rows of a sequential data set, in any order.

    Attributes:
        users, targets: of each row, int64 ``[rows]``.
        windows: items before the target, the oldest first, int64 ``[rows, L]``, 0 is padding.
        lengths: items of each window, int64 ``[rows]``.
        times: of the targets, ``[rows]``.
        parts: number of the file of each row, which orders rows of the same time, ``[rows]``.
    """

    users: np.ndarray
    targets: np.ndarray
    windows: np.ndarray
    lengths: np.ndarray
    times: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, dataset: Any) -> ChoiceRows:
        """The rows of a RecBole data set: of a part, or of all parts before they are split."""
        rows = dataset.inter_feat
        n_rows, sizes = len(rows), getattr(dataset, "file_size_list", [])
        no_order = np.zeros(n_rows, dtype=np.int64)
        has_times = dataset.time_field in rows.interaction
        return cls(
            users=np.asarray(rows[dataset.uid_field]),
            targets=np.asarray(rows[dataset.iid_field]),
            windows=np.asarray(rows[dataset.item_id_list_field]),
            lengths=np.asarray(rows[dataset.item_list_length_field]),
            times=np.asarray(rows[dataset.time_field]) if has_times else no_order,
            parts=np.repeat(np.arange(len(sizes)), sizes) if sum(sizes) == n_rows else no_order,
        )

    @cached_property
    def order(self) -> np.ndarray:
        """The rows user by user, as users first appear, each user's in chronological order.

        Rows of the same time (float32 in RecBole) stand in the order of their parts, the shorter
        window first, and else as they are.
        """
        _, first, own = np.unique(self.users, return_index=True, return_inverse=True)
        return np.lexsort((self.lengths, self.parts, self.times, first[own]))

    @cached_property
    def continues(self) -> np.ndarray:
        """Whether each row of :attr:`order` is the choice behind that of the row before it.

        It is where the same user's window is the end of the window and target before; ``[rows]``.
        """
        result = np.zeros(len(self.users), dtype=bool)
        columns = np.arange(self.windows.shape[1])
        for start in range(1, len(result), ROWS_AT_A_TIME):
            now = self.order[start : start + ROWS_AT_A_TIME]
            last = self.order[start - 1 : start - 1 + len(now)]
            lengths = self.lengths[now]
            shift = self.lengths[last] + 1 - lengths  # items that have left the window
            windows = self.windows[now]  # [rows, L]
            places = np.clip(columns + shift[:, None], 0, len(columns) - 1)
            before = np.take_along_axis(self.windows[last], places, axis=1)
            ends = windows[np.arange(len(now)), np.maximum(lengths - 1, 0)] == self.targets[last]
            agrees = (windows == before) | (columns >= lengths[:, None] - 1)
            is_same = self.users[now] == self.users[last]
            result[start : start + len(now)] = (
                is_same & (lengths > 0) & (shift >= 0) & ends & agrees.all(1)
            )
        return result


@dataclass(frozen=True)
class Chronology:
    """What each user has chosen, in chronological order.

    Attributes:
        starts: int64 ``[n_users + 1]``; user ``u`` has ``items[starts[u] : starts[u + 1]]``.
        items: int64 ``[choices]``; an item that was chosen twice is there twice.
        follows: whether an item is known to be the next choice behind the one before it, bool
            ``[choices]``; it is not for a user's first one and behind a gap between windows.
        before: how many of the user's items stand before each row's target, int64 ``[rows]``.
    """

    starts: np.ndarray
    items: np.ndarray
    follows: np.ndarray
    before: np.ndarray

    @classmethod
    def of(cls, rows: ChoiceRows, n_users: int) -> Chronology:
        """Put rows together.

        Args:
            rows: in any order.
            n_users: users, padding included.
        """
        order, continues = rows.order, rows.continues
        users = rows.users[order]
        firsts = np.flatnonzero(np.append(True, users[1:] != users[:-1])[: len(users)])
        before = np.zeros(len(order), dtype=np.int64)
        pieces: dict[int, list[np.ndarray]] = {}  # of each user
        for start, end in pairwise([*firsts, len(order)]):
            own = order[start:end]
            if continues[start + 1 : end].all():
                window = rows.windows[own[0], : rows.lengths[own[0]]]
                pieces[int(users[start])] = [np.concatenate([window, rows.targets[own]])]
                before[own] = len(window) + np.arange(len(own))
            else:
                pieces[int(users[start])], before[own] = joined_windows(
                    [rows.windows[row, : rows.lengths[row]].tolist() for row in own],
                    rows.targets[own].tolist(),
                    list(zip(rows.times[own].tolist(), rows.parts[own].tolist(), strict=True)),
                )
        in_order = [piece for user in sorted(pieces) for piece in pieces[user]]
        nothing = np.empty(0, dtype=np.int64)
        items = np.concatenate([*in_order, nothing])
        follows = np.ones(len(items), dtype=bool)
        follows[np.cumsum([0, *map(len, in_order)])[:-1]] = False
        counts = np.zeros(n_users, dtype=np.int64)
        for user, own_pieces in pieces.items():
            counts[user] = sum(map(len, own_pieces))
        return cls(np.append(0, np.cumsum(counts)), items, follows, before)

    def sequences(self) -> list[np.ndarray]:
        """The choices that are known to follow each other, one array for each user and gap."""
        if not len(self.items):
            return []
        return np.split(self.items, np.flatnonzero(~self.follows)[1:])


def runs_of(users: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put rows into the order in which they follow each other.

    Args:
        users: of each row, ``[rows]``.
        before: how many of the user's choices stand before each row's target, ``[rows]``.

    Returns:
        the rows user by user, as users first appear, each user's in chronological order; and the
        run of each, numbered from 0: in a run each target is the next choice behind the last one.
    """
    _, first, own = np.unique(users, return_index=True, return_inverse=True)
    order = np.lexsort((before, first[own]))
    users, before = users[order], before[order]
    begins = (users[1:] != users[:-1]) | (before[1:] != before[:-1] + 1)
    return order, np.append(0, np.cumsum(begins))[: len(order)]
