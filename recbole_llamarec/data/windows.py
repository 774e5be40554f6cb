"""One user's windows, with gaps or ties of time between them, put together to sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np


@dataclass
class _Piece:
    """Choices that are known to follow each other, and where the targets of rows are in them."""

    items: list[int]
    places: dict[int, int] = field(default_factory=dict)

    def put_in_front(self, items: Sequence[int]) -> None:
        self.items = [*items, *self.items]
        self.places = {row: place + len(items) for row, place in self.places.items()}


def joined_windows(
    windows: Sequence[list[int]], targets: Sequence[int], times: Sequence[tuple[Any, int]]
) -> tuple[list[np.ndarray], list[int]]:
    """Put the rows of one user together.

    Windows that overlap are one sequence. Between windows that do not, there is a gap, of which
    nobody knows what stood in it. Rows of the same time come in the order in which one continues
    the other. A row that is there twice, as where two parts are the same file, counts once.

    Args:
        windows: items before each target, the oldest first.
        targets: of each row.
        times: time and part of each row; rows are sorted by them.

    Returns:
        the sequences, and for each row how many items of all of them stand before its target.
    """
    rows = [
        (i, [*own, target]) for i, (own, target) in enumerate(zip(windows, targets, strict=True))
    ]
    pieces: list[_Piece] = []
    known: set[tuple[Any, int]] = set()  # times and targets
    for (time, _), tied in groupby(rows, key=lambda row: times[row[0]]):
        waiting = list(tied)
        while waiting:
            row, items = waiting.pop(_next_of([own for _, own in waiting], pieces))
            _add(pieces, row, items, is_known=(time, items[-1]) in known)
            known.add((time, items[-1]))
    places: dict[int, int] = {}
    offset = 0
    for piece in pieces:
        places |= {row: offset + place for row, place in piece.places.items()}
        offset += len(piece.items)
    arrays = [np.array(piece.items, dtype=np.int64) for piece in pieces]
    return arrays, [places[row] for row in range(len(rows))]


def _next_of(tied: Sequence[list[int]], pieces: Sequence[_Piece]) -> int:
    """Which row of the same time comes first; windows are sorted by their lengths."""
    if len(tied) == 1:
        return 0
    places = range(len(tied))
    if pieces:
        for place in reversed(places):  # the longest window that fits
            if _continues(tied[place], pieces[-1].items):
                return place
    starts = [
        place
        for place in places
        if not any(_continues(tied[place], other) for other in tied if other is not tied[place])
    ]
    return starts[0] if starts else 0


def _continues(row: list[int], items: list[int]) -> bool:
    """Whether a row's window is the end of some items, so that its target is the next one."""
    length = len(row) - 1
    return 0 < length <= len(items) and row[-2] == items[-1] and row[:-1] == items[-length:]


def _add(pieces: list[_Piece], row: int, items: list[int], is_known: bool) -> None:
    """Add a row's window and target to the sequences."""
    if pieces and _continues(items, pieces[-1].items):
        pieces[-1].items.append(items[-1])
        pieces[-1].places[row] = len(pieces[-1].items) - 1
        return
    if is_known:
        for piece in reversed(pieces):
            if (start := _place_of(items, piece.items)) is not None:
                piece.places[row] = start + len(items) - 1
                return
    pieces.append(_Piece(items, {row: len(items) - 1}))
    while len(pieces) > 1 and (new := _items_behind(pieces[-1].items, pieces[-2].items)):
        later = pieces.pop()
        front = later.items[: max(0, len(later.items) - new - len(pieces[-1].items))]
        pieces[-1].put_in_front(front)
        pieces[-1].items += later.items[-new:]
        shift = len(pieces[-1].items) - len(later.items)
        pieces[-1].places |= {own: place + shift for own, place in later.places.items()}
        if not front:
            break  # only a window that reaches behind a gap may close it


def _items_behind(items: list[int], known: list[int]) -> int:
    """How many of some items are new behind known ones, by the longest overlap; 0 is none."""
    for new in range(1, len(items)):
        shared = min(len(items) - new, len(known))
        if items[-new - 1] == known[-1] and items[-new - shared : -new] == known[-shared:]:
            return new
    return 0


def _place_of(items: list[int], among: list[int]) -> int | None:
    """Where some items stand one behind the other."""
    n_items = len(items)
    starts = range(len(among) - n_items + 1)
    return next((start for start in starts if among[start : start + n_items] == items), None)
