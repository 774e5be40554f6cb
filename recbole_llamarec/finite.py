"""Scores that are not finite are errors: nothing is ranked, fitted or printed with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class RowError(ValueError):
    """Something is wrong with the scores of one row.

    Args:
        message: what it is, and what to try.
        row: its place among those that were scored, if there is one.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class NotFiniteError(RowError):
    """A score or a loss is NaN or infinite."""


def check_finite(scores: Tensor, what: str, remedy: str) -> None:
    """Check that no score is NaN or infinite.

    Args:
        scores: ``[rows, K]``.
        what: whose scores they are, in words that follow "The".
        remedy: a sentence that says what to try.

    Raises:
        NotFiniteError: names the first row that has one.
    """
    is_finite = scores.isfinite().all(1)  # [rows]
    if is_finite.all():
        return
    row = int(is_finite.int().argmin())
    values = scores[row].tolist()
    raise NotFiniteError(f"The {what} of row {row} are not finite: {values}. {remedy}", row)


@contextmanager
def naming_stage(stage: str) -> Iterator[None]:
    """Within, errors of scores that are not finite begin with the stage of a run.

    It is a decorator of functions too.
    """
    try:
        yield
    except NotFiniteError as error:
        if str(error).startswith(f"{stage}:"):
            raise
        raise NotFiniteError(f"{stage}: {error}", error.row) from error
