"""RecBole's atomic files as they are written: a head line of ``name:type``, then a row a line.

RecBole reads them as csv, in which a quotation mark opens a field that ends at the next one,
however many lines on. Atomic files have no quoting: a field is the text between two separators.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_llamarec.data.missing import PANDAS_MISSING

TYPES = ("token", "float", "token_seq", "float_seq")
MISSING_NUMBERS = frozenset(PANDAS_MISSING)


class DataSetError(ValueError):
    """The files of a data set cannot be used; names the file, or the key, and what to do."""


@dataclass(frozen=True)
class AtomicFile:
    """Columns of an atomic file as text.

    Attributes:
        path: of the file.
        types: by field, those of all columns in the file's order.
        columns: by field, the text of each row; of the wanted columns alone.
        blank_lines: numbers of the lines without text, which are no rows.
    """

    path: Path
    types: dict[str, str]
    columns: dict[str, list[str]]
    blank_lines: list[int]

    def error(self, row: int, message: str) -> DataSetError:
        """An error about a row, which is counted from 0; names the line."""
        number = row + 2
        for blank in self.blank_lines:
            number += blank <= number
        return DataSetError(f"{self.path}, line {number}: {message}")

    def tokens(self, field: str) -> np.ndarray:
        """A column of tokens ``[rows]``; NaN where the text is empty.

        Whatever else is written is a token, also words such as ``NA`` and ``null``.
        """
        cells = np.empty(len(self.columns[field]), dtype=object)
        cells[:] = [cell or np.nan for cell in self.columns[field]]
        return cells

    def numbers(self, field: str) -> np.ndarray:
        """A column of numbers, float64 ``[rows]``; NaN where one is missing.

        Raises:
            DataSetError: a text is no number; names the line.
        """
        cells = self.columns[field]
        return np.array([self._number(field, row, cell) for row, cell in enumerate(cells)])

    def token_lists(self, field: str, separator: str) -> list[np.ndarray]:
        """A column of token sequences, an array a row."""
        rows = (filter(None, cell.split(separator)) for cell in self.columns[field])
        return [np.array(list(row), dtype=str) for row in rows]

    def number_lists(self, field: str, separator: str) -> list[np.ndarray]:
        """A column of sequences of numbers, float64, an array a row.

        Raises:
            DataSetError: a text is no number; names the line.
        """
        return [
            np.array(
                [self._number(field, row, part) for part in cell.split(separator) if part],
                dtype=np.float64,
            )
            for row, cell in enumerate(self.columns[field])
        ]

    def _number(self, field: str, row: int, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            if text.strip() in MISSING_NUMBERS:
                return np.nan
            kind = self.types[field]
            raise self.error(
                row,
                f"{field}:{kind} holds {text!r}, which is no number. Mend the line, or declare the "
                f"column as {kind.replace('float', 'token')} in the head line.",
            ) from None


def read_atomic_file(
    path: Path, separator: str, encoding: str | None, is_wanted: Callable[[str], bool]
) -> AtomicFile:
    """Read some columns of an atomic file.

    Args:
        path: the file.
        separator: RecBole's ``field_separator``.
        encoding: of the file; ``None`` is UTF-8. A byte order mark is no text.
        is_wanted: whether the column of a field is read.

    Raises:
        DataSetError: a line cannot be read; names the file and the line.
    """
    lines = _lines_of(path, encoding)
    types = _types_in(path, next(lines, (1, ""))[1], separator)
    wanted = [(place, field) for place, field in enumerate(types) if is_wanted(field)]
    columns: dict[str, list[str]] = {field: [] for _, field in wanted}
    places = [(columns[field], {}, place) for place, field in wanted]  # type: ignore[var-annotated]
    blank_lines = []
    for number, line in lines:
        if not line.strip():
            blank_lines.append(number)
            continue
        cells = line.removesuffix("\n").split(separator)
        if len(cells) != len(types):
            raise DataSetError(
                f"{path}, line {number}: {len(cells)} fields, but the head line names "
                f"{len(types)} ({', '.join(types)}). Mend the line: between fields stands one "
                f"field_separator, {separator!r}, and no field may hold it, for there is no "
                "quoting."
            )
        for column, known, place in places:  # equal texts are kept once
            column.append(known.setdefault(cells[place], cells[place]))
    return AtomicFile(path, types, columns, blank_lines)


def _lines_of(path: Path, encoding: str | None) -> Iterator[tuple[int, str]]:
    """Numbers and texts of a file's lines, with whatever line ends."""
    name = codecs.lookup(encoding or "utf-8").name
    try:
        with path.open(encoding="utf-8-sig" if name == "utf-8" else name) as file:
            yield from enumerate(file, start=1)
    except UnicodeError as error:
        raise DataSetError(_not_in(path, name)) from error


def _not_in(path: Path, encoding: str) -> str:
    """Which line is not in an encoding, and what to do."""
    where = str(path)
    with path.open("rb") as file:
        if b"\0" in file.read(100):
            found = "it seems to be UTF-16"
        else:
            file.seek(0)
            found = "it has other bytes"
            for number, line in enumerate(file, start=1):
                try:
                    line.decode(encoding)
                except UnicodeError as error:
                    where, found = f"{path}, line {number}", f"it has other bytes ({error})"
                    break
    return (
        f"{where}: the file is not in {encoding}; {found}. Save it as UTF-8, or name its encoding "
        "with the key encoding, such as encoding: utf-16 or latin-1."
    )


def _types_in(path: Path, head: str, separator: str) -> dict[str, str]:
    """Types of the fields that a head line names, in its order."""
    where = f"{path}, line 1: the head line"
    if "\0" in head:
        raise DataSetError(
            f"{where} holds U+0000, so that the file seems to be UTF-16. Save it as UTF-8, or name "
            "its encoding with the key encoding, such as encoding: utf-16 or utf-16-le."
        )
    types: dict[str, str] = {}
    for name in head.removesuffix("\n").split(separator):
        field, _, kind = name.strip().partition(":")
        if not field or kind not in TYPES:
            raise DataSetError(
                f"{where} holds {name!r}, which is no name:type. Write each column as name:type, "
                f"with a type of {', '.join(TYPES)}, and between columns the field_separator, "
                f"{separator!r}."
            )
        if field in types:
            raise DataSetError(f"{where} names {field!r} twice; name each column once.")
        types[field] = kind
    return types
