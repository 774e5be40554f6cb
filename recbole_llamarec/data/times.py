"""The time of each interaction as a number, from numbers or dates."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np

from recbole_llamarec.data.atomic_files import AtomicFile, DataSetError
from recbole_llamarec.data.missing import PANDAS_MISSING


def times_of(file: AtomicFile, field: str) -> np.ndarray:
    """The times in a column.

    The column holds numbers, or dates of ISO 8601 such as ``2019-01-08``, ``2019-01-08 12:30:00``
    or ``2019-01-08T12:30:00+01:00``; without an offset they are taken as UTC.

    Args:
        file: an atomic file.
        field: its column of times, of type token or float.

    Returns:
        float64 ``[rows]``, all finite: the numbers, or seconds since 1970.

    Raises:
        DataSetError: a row has no time, or it cannot be read, or the column has both kinds; names
            the line.
    """
    if file.types[field].endswith("_seq"):
        raise DataSetError(
            f"TIME_FIELD: {field!r} is of type {file.types[field]} in {file.path}; an interaction "
            "has one time. Declare it as float in the head line, or name another column."
        )
    cells = file.columns[field]
    known: dict[str, float] = {}
    are_dates = bool(cells) and _number(cells[0]) is None
    for row, cell in enumerate(cells):
        if cell in known:
            continue
        time = _date(cell) if are_dates else _number(cell)
        if time is None:
            raise file.error(row, _fault(field, cell, are_dates))
        known[cell] = time
    return np.array([known[cell] for cell in cells], dtype=np.float64)


def _number(text: str) -> float | None:
    """A finite number, or ``None``."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _date(text: str) -> float | None:
    """Seconds since 1970, or ``None``."""
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _fault(field: str, text: str, are_dates: bool) -> str:
    if text.strip() in PANDAS_MISSING:
        return (
            f"TIME_FIELD: {field!r} is empty ({text!r}), so that the place of this interaction in "
            "its user's history is unknown. Fill it in, or remove the line."
        )
    if _number(text) is not None or _date(text) is not None:
        before = "a date" if are_dates else "a number"
        return f"TIME_FIELD: {field!r} is {text!r}, but {before} before; write one kind of time."
    return (
        f"TIME_FIELD: {field!r} is {text!r}, which is no time. Write numbers, such as seconds "
        "since 1970, or dates of ISO 8601, such as 2019-01-08 or 2019-01-08T12:30:00."
    )
