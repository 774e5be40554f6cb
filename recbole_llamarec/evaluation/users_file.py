"""The users' table as a file. Whatever is wrong with it is an error that names the line.

A table that was cut, mixed up or edited must not give figures that look right. The last column of a
run's table, ``row``, says which of how many each row is, so that none can be missing; metrics are
compared with those of the ranks beside them.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llamarec.evaluation.metrics import is_rank_metric, metrics_of_ranks
from recbole_llamarec.evaluation.table import RANK
from recbole_llamarec.files import written_whole

ROW = "row"
COUNTS = ("history_length", "target_count")  # whole numbers from 0
FIRST, FIRST_COUNT = "first", "first_count"  # of a scorer; empty in rows that it has not scored
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
WHOLE = re.compile(r"[0-9]{1,12}(\.0)?")
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?(e-?[0-9]{1,3})?", re.IGNORECASE)
LARGEST_TOPK = 100  # a metric of a longer list is not worked out again
ROUNDING = 1e-6


class DamagedTable(ValueError):
    """A table that cannot be relied on; the message names file, line and fault."""


def write_users(file: Path, users: pd.DataFrame) -> None:
    """Write a run's table of users, whole or not at all."""
    with written_whole(file) as part:
        users.assign(**{ROW: row_numbers(len(users))}).to_csv(part, index=False)


def row_numbers(n_rows: int) -> list[str]:
    """The column ``row`` of a table."""
    return [f"{number} of {n_rows}" for number in range(1, n_rows + 1)]


def read_run_users(file: Path) -> pd.DataFrame:
    """Read what :func:`write_users` wrote.

    Args:
        file: a run's ``.users.csv``; it may be packed by gzip.

    Returns:
        the table without ``row``: ids as text, all else as numbers.

    Raises:
        DamagedTable: it is damaged.
    """
    table = Table(file, "Evaluate the checkpoint again, or restore a copy of the file.")
    users = table.numbers(texts=("user_id", "item_id"), may_lack_stages=False)
    table.check_rows()
    table.check_metrics(users)
    return users


class Table:
    """A table of text fields, of which each row knows its line.

    Args:
        file: CSV in UTF-8 with a header; packed where its name ends with ``.gz``.
        remedy: what the reader of an error is to do.

    Attributes:
        fields: every field as it stands in the file.

    Raises:
        DamagedTable: it is cut, is no such text, or a row has too few or too many fields.
    """

    def __init__(self, file: Path, remedy: str) -> None:
        self._file, self._remedy = file, remedy
        self._lines = [1]  # of the header and of each row
        header, *rows = self._rows(self._text())
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise self.damaged(1, f"the header names the column {twice[0]!r} twice")
        self.fields = pd.DataFrame(rows, columns=header, dtype=str)
        if not rows:
            raise self.damaged(1, "there is a header and no row")

    def damaged(self, line: int, fault: str) -> DamagedTable:
        """The error for a line of the file."""
        return DamagedTable(f"{self._file}, line {line}: {fault}. {self._remedy}")

    def damaged_row(self, row: int, fault: str) -> DamagedTable:
        """The error for a row, counted from 0."""
        return self.damaged(self._lines[1 + row], fault)

    def _text(self) -> str:
        content = self._file.read_bytes()
        if content and (self._file.suffix == ".gz" or content.startswith(GZIP)):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise self.damaged(1, f"it is no whole gzip file ({error})") from error
        if not content:
            raise self.damaged(1, "the file is empty")
        if content.startswith(BOM):
            raise self.damaged(1, "it begins with a byte order mark; save it as plain UTF-8")
        n_lines = content.count(b"\n") + (not content.endswith(b"\n"))
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = 1 + content.count(b"\n", 0, error.start)
            raise self.damaged(line, f"it is no text in UTF-8 ({error.reason})") from error
        if "\0" in text:
            raise self.damaged(1 + text[: text.index("\0")].count("\n"), "it holds U+0000")
        if not text.endswith("\n"):
            raise self.damaged(n_lines, "the file ends within a line")
        return text

    def _rows(self, text: str) -> Iterator[list[str]]:
        """The header and the rows, all of one length."""
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        begin, width = 1, None
        try:
            for fields in reader:
                width = width or len(fields)
                if len(fields) != width or not fields:
                    fault = f"{len(fields)} fields, where the header has {width}"
                    raise self.damaged(begin, fault)
                if begin > 1:
                    self._lines.append(begin)
                begin = reader.line_num + 1
                yield fields
        except csv.Error as error:
            raise self.damaged(begin, f"it cannot be read ({error})") from error

    def numbers(self, texts: Sequence[str], may_lack_stages: bool) -> pd.DataFrame:
        """The fields as what they are: ids as text, ranks, counts and metrics as numbers.

        Args:
            texts: columns of ids.
            may_lack_stages: whether a row may be empty in the columns of a stage.

        Raises:
            DamagedTable: a field is none, or the columns are not those of a run.
        """
        self._check_order()
        columns = {}
        for name in self.fields:
            kind, colon, _ = name.partition(":")
            if name in texts:
                columns[name] = self._ids(name)
            elif name in COUNTS:
                columns[name] = self._numbers(name, WHOLE, "a whole number")
            elif kind == RANK and colon:
                columns[name] = self._numbers(name, WHOLE, "a rank, from 1", 1, may_lack_stages)
            elif kind in (FIRST, FIRST_COUNT) and colon:
                columns[name] = self._numbers(name, WHOLE, "a whole number", 0, True)
            elif "@" in kind and colon:
                columns[name] = self._numbers(name, DECIMAL, "a metric", 0, may_lack_stages)
        numbers = pd.DataFrame(columns)
        self._check_gaps(numbers)
        return numbers

    def _check_gaps(self, numbers: pd.DataFrame) -> None:
        """A row has all columns of a stage or scorer, or none."""
        first: dict[tuple[str, bool], str] = {}  # column by stage, or by scorer
        for name in numbers:
            kind, colon, of = str(name).partition(":")
            if not colon:
                continue
            other = first.setdefault((of, kind in (FIRST, FIRST_COUNT)), str(name))
            if (differs := numbers[name].isna() != numbers[other].isna()).any():
                row = int(differs.argmax())
                raise self.damaged_row(row, f"of {other} and {name} one is empty")

    def _check_order(self) -> None:
        """The columns are those of a run, in its order, so that no two have changed their names."""
        known = (*COUNTS, ROW)
        names = [name for name in self.fields if ":" in name or "@" in name or name in known]
        stages = [name.removeprefix(f"{RANK}:") for name in names if name.startswith(f"{RANK}:")]
        scorers = [name.removeprefix(f"{FIRST}:") for name in names if name.startswith(f"{FIRST}:")]
        of_stage = f":{stages[0]}" if stages else ":"
        metrics = [
            name.removesuffix(of_stage)
            for name in names
            if "@" in name.removesuffix(of_stage) and name.endswith(of_stage)
        ]
        expected = [
            *(f"{kind}:{stage}" for stage in stages for kind in (RANK, *metrics)),
            *(name for name in COUNTS if name in names),
            *(f"{kind}:{scorer}" for scorer in scorers for kind in (FIRST, FIRST_COUNT)),
            *([ROW] if ROW in names else []),
        ]
        for found, wanted in zip_longest(names, expected):
            if found != wanted:
                raise self.damaged(
                    1,
                    f"the header has {found or 'no further column'!r} where a run writes "
                    f"{wanted or 'no further column'!r}",
                )

    def _ids(self, name: str) -> pd.Series:
        column = self.fields[name]
        if (empty := column == "").any():
            raise self.damaged_row(int(empty.argmax()), f"{name} is empty")
        return column

    def _numbers(
        self,
        name: str,
        pattern: re.Pattern[str],
        wanted: str,
        least: float = 0,
        may_be_empty: bool = False,
    ) -> pd.Series:
        column = self.fields[name]
        numbers = {
            text: float(text) for text in column.unique() if pattern.fullmatch(text) is not None
        }
        numbers = {text: number for text, number in numbers.items() if least <= number < np.inf}
        if may_be_empty:
            numbers[""] = np.nan
        if (wrong := ~column.isin(list(numbers))).any():
            row = int(wrong.argmax())
            raise self.damaged_row(row, f"{name} is {column[row]!r}, but must be {wanted}")
        values = column.map(numbers).astype(float)
        return values if may_be_empty or pattern is DECIMAL else values.astype(int)

    def check_rows(self) -> None:
        """No row is missing or there twice.

        Raises:
            DamagedTable: ``row`` or, in a table without it, equal rows say so.
        """
        if ROW not in self.fields:
            if (again := self.fields.duplicated()).any():
                raise self.damaged_row(int(again.argmax()), "the row is there twice")
            return
        column, expected = self.fields[ROW], row_numbers(len(self.fields))
        if (wrong := column != expected).any():
            row = int(wrong.argmax())
            raise self.damaged_row(
                row,
                f"it is row {column[row]!r} where {expected[row]!r} is expected: rows are missing, "
                "there twice, or in another order",
            )

    def check_metrics(self, users: pd.DataFrame) -> None:
        """The metrics are those of the ranks.

        Raises:
            DamagedTable: one is not.
        """
        for name in users:
            metric, _, stage = str(name).partition(":")
            kind, _, topk = metric.partition("@")
            if not (topk.isdecimal() and int(topk) <= LARGEST_TOPK and is_rank_metric(kind)):
                continue
            config = {"metrics": [kind], "topk": [int(topk)], "metric_decimal_place": 4}
            expected = metrics_of_ranks(users[f"{RANK}:{stage}"].to_numpy(), config)[metric]
            if (wrong := (users[name] - expected).abs() > ROUNDING).any():
                row = int(wrong.argmax())
                rank = users[f"{RANK}:{stage}"][row]
                raise self.damaged_row(
                    row, f"{name} is {users[name][row]}, but {expected[row]:.4f} at rank {rank}"
                )
