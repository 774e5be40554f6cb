"""Histories as files hold them: one a line of JSON, or one a row of Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 64  # histories ranked at a time
PARQUET = ".parquet"  # ending of a file's name; every other file holds lines of JSON
COLUMN = "history"  # of a Parquet file
EXCERPT = 60  # characters of a line that an error shows
NO_LIST = "no list of item tokens, the oldest first"


class KnowsItems(Protocol):
    """What can say that a data set does not have an item: a ``Recommender``."""

    def ids_of(self, tokens: Sequence[str]) -> list[int]: ...


def histories_of(file: Path, items: KnowsItems) -> Iterator[list[str]]:
    """The histories of a file in its order, read as they are asked for.

    Args:
        file: of Parquet by its name, else with one JSON list of item tokens a line.
        items: which there are.

    Raises:
        ValueError: a line or row is no list of known items; names it.
        ImportError: Parquet cannot be read.
    """
    for place, history in _rows_of(file) if file.suffix == PARQUET else _lines_of(file):
        try:
            items.ids_of(history)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        yield history


def read_history(line: bytes | str, number: int, file: Path) -> list[str]:
    """One line's item tokens; a number stands for the token that is written so.

    Raises:
        ValueError: names the file and the line.
    """
    try:
        tokens = json.loads(line if isinstance(line, str) else line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}, line {number}: no JSON in UTF-8 ({error}).") from error
    if fault := _fault_in(tokens):
        raise ValueError(f"{file}, line {number}: {fault}. The line begins {_excerpt(line)}.")
    return [str(token) for token in tokens]


def open_parquet(file: Path) -> ParquetFile:
    """A Parquet file, of which nothing but its head is read yet.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(
            f'{file}: Parquet is read by pyarrow, which is not installed: pip install ".[parquet]".'
        ) from error
    try:
        return ParquetFile(file)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: it cannot be read as Parquet ({error}).") from error


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most ``size`` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _lines_of(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and the tokens of each line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield f"{file}, line {number}", read_history(line, number, file)


def _rows_of(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and the tokens of each row of Parquet; the first row is 1."""
    with open_parquet(file) as parquet:
        if COLUMN not in parquet.schema_arrow.names:
            raise ValueError(
                f"{file}: it has the columns {', '.join(parquet.schema_arrow.names)}; it must have "
                f"{COLUMN!r}, lists of item tokens."
            )
        number = 0
        for batch in parquet.iter_batches(BATCH, columns=[COLUMN]):
            for tokens in batch.column(0).to_pylist():
                number += 1
                place = f"{file}, row {number}"
                if fault := _fault_in(tokens):
                    raise ValueError(f"{place}: {fault}. It is {_excerpt(repr(tokens))}.")
                yield place, [str(token) for token in tokens]


def _fault_in(tokens: Any) -> str:
    """What keeps a value from being a history; nothing if it is one."""
    if not isinstance(tokens, list) or not tokens:
        return NO_LIST
    wrong = [t for t in tokens if isinstance(t, bool) or not isinstance(t, str | int)]
    if wrong:
        shown = json.dumps(wrong[0], default=str)[:EXCERPT]
        return f"{shown} is no item token; write it in quotes"
    return ""


def _excerpt(line: bytes | str) -> str:
    """The beginning of a line, to be printed."""
    text = line if isinstance(line, str) else line.decode(errors="replace")
    return ascii(text.strip()[:EXCERPT])
