"""One user's windows, with gaps or ties of time between them, put together to sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np


@dataclass(eq=False)
class _Piece:
    """Choices that are known to follow each other.

    Attributes:
        items: of the choices.
        time: of the last row.
        places: where the targets of rows are among the items.
    """

    items: list[int]
    time: Any
    places: dict[int, int] = field(default_factory=dict)


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
        times: time and part of each row; rows are sorted by them, and then by the window's length.

    Returns:
        the sequences, and for each row how many items of all of them stand before its target.
    """
    rows = [(i, [*own, targets[i]]) for i, own in enumerate(windows)]
    pieces: list[_Piece] = []
    recent: tuple[Any, ...] = ()  # the time of the rows that are added, and the one before
    for (time, _), tied in groupby(rows, key=lambda row: times[row[0]]):
        recent = recent if time in recent[:1] else (time, *recent[:1])
        waiting = list(tied)
        while waiting:
            row, items = waiting.pop(_next_of([own for _, own in waiting], pieces))
            _add(pieces, _Piece(items, time, {row: len(items) - 1}), recent)
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
    starts = (
        place
        for place in places
        if not any(_continues(tied[place], other) for other in tied if other is not tied[place])
    )
    return next(starts, 0)


def _continues(row: list[int], items: list[int]) -> bool:
    """Whether a row's window is the end of some items, so that its target is the next one."""
    length = len(row) - 1
    return 0 < length <= len(items) and row[-2] == items[-1] and row[:-1] == items[-length:]


def _add(pieces: list[_Piece], new: _Piece, recent: tuple[Any, ...]) -> None:
    """Add a row's window and target; the last piece is the latest.

    A row continues or overlaps a recent piece; one whose window reaches behind that, an earlier one
    too. Of pieces of its own time, it may also stand in front, or within one.

    Args:
        pieces: changed in place.
        new: the row alone.
        recent: times of pieces that the row may belong to.
    """
    (row,) = new.places
    latest = [piece for piece in reversed(pieces) if piece.time in recent]
    if known := next((piece for piece in latest if _continues(new.items, piece.items)), None):
        known.items.append(new.items[-1])
        known.places[row] = len(known.items) - 1
        known.time = new.time
        pieces.remove(known)
        new = known
    else:
        for piece in latest:
            place = _place_of(new.items, piece.items) if piece.time == new.time else None
            if place is not None:
                piece.places[row] = place + len(new.items) - 1
                return
    near = [piece for piece in latest if piece is not known]
    while near:
        piece = near.pop(0)
        is_tied = piece.time == new.time
        if joined := _joined(piece, new) or (_joined(new, piece) if is_tied else None):
            pieces.remove(piece)
            new = joined
            reaches_back = joined.items[: len(piece.items)] != piece.items
            near = [own for own in reversed(pieces) if reaches_back or own.time in recent]
    pieces.append(new)


def _joined(first: _Piece, second: _Piece) -> _Piece | None:
    """Two pieces as one, where the second overlaps the end of the first and goes beyond it."""
    known, items = first.items, second.items
    for new in range(1, len(items)):  # items beyond, the longest overlap first
        shared = min(len(items) - new, len(known))
        if items[-new - 1] != known[-1] or items[-new - shared : -new] != known[-shared:]:
            continue
        front = items[: len(items) - new - shared]
        joined = [*front, *known, *items[-new:]]
        places = {row: place + len(front) for row, place in first.places.items()}
        shift = len(joined) - len(items)
        places |= {row: place + shift for row, place in second.places.items()}
        return _Piece(joined, second.time, places)
    return None


def _place_of(items: list[int], among: list[int]) -> int | None:
    """Where some items stand one behind the other."""
    starts = range(len(among) - len(items) + 1)
    return next((start for start in starts if among[start : start + len(items)] == items), None)
