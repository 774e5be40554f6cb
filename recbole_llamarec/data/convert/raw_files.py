"""Raw downloads as streams of lines, and atomic files as what becomes of them.

Nothing here keeps more than a line: memory does not grow with the input. A line that cannot be read
is damage; it is counted with its reason and never dropped in silence.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from recbole_llamarec.data.missing import PANDAS_MISSING

MAX_LINE_BYTES = 10_000_000
MAX_TEXT = 10_000  # characters of a field; RecBole's reader refuses fields above 131,072
PLAIN_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?")
EXCERPT = 60
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # and half characters
INTER_HEAD = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
Row = tuple[str, ...]


class ConversionError(ValueError):
    """Raw files that cannot be converted; the message is for the user."""


class Damage(ValueError):
    """A line that cannot be read; the message is the reason, the same for all lines alike."""


@dataclass
class FileReport:
    """What became of one raw file.

    Attributes:
        file: its name.
        written: rows written.
        notes: what was written with a loss, or left out for a reason that is no damage, counted.
        damaged: for each reason the count, the first line's number and an excerpt of it.
    """

    file: str
    written: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.notes[text] = self.notes.get(text, 0) + 1

    def damage(self, reason: str, number: int, line: bytes) -> None:
        count, first, excerpt = self.damaged.get(reason, (0, number, shortened(line)))
        self.damaged[reason] = (count + 1, first, excerpt)

    def lines(self) -> list[str]:
        """The report as text."""
        result = [f"{self.file}: {self.written} rows written"]
        result += [f"  {count} {text}" for text, count in self.notes.items()]
        result += [
            f"  {count} damaged lines left out: {reason} (first in line {first}: {excerpt})"
            for reason, (count, first, excerpt) in self.damaged.items()
        ]
        return result


def shortened(line: bytes) -> str:
    """The beginning of a line, fit to be printed."""
    text = line[: 4 * EXCERPT].decode(errors="replace")
    text = clean(text)
    return repr(text if len(text) <= EXCERPT else text[:EXCERPT] + "…")


# --- reading ------------------------------------------------------------------------------------


def raw_lines(path: Path, progress: tqdm) -> Iterator[tuple[int, bytes]]:
    """Lines of a plain or gzip file with their numbers, without their line breaks.

    A line longer than ``MAX_LINE_BYTES`` comes cut, one byte longer than that.

    Args:
        path: the file.
        progress: is moved on by the bytes read from the disk.

    Raises:
        ConversionError: the gzip file is incomplete or damaged.
    """
    with path.open("rb") as raw:
        before, number = progress.n, 0
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip else raw
        try:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                rest = line
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 1)
                yield number, line.rstrip(b"\r\n")
                if number % 1000 == 0:
                    progress.update(before + raw.tell() - progress.n)
            progress.update(before + raw.tell() - progress.n)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ConversionError(
                f"{path} is an incomplete or damaged gzip file ({error}). Download it again."
            ) from error


def parsed_rows(
    lines: Iterable[tuple[int, bytes]],
    parse: Callable[[str], Row],
    report: FileReport,
    encoding: str = "utf-8",
) -> Iterator[Row]:
    """Rows of the lines that ``parse`` can read; the others are counted in ``report``."""
    for number, line in lines:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise Damage(f"longer than {MAX_LINE_BYTES} bytes")
            yield parse(line.decode(encoding))
        except UnicodeDecodeError:
            report.damage(f"not {encoding} text", number, line)
        except Damage as damage:
            report.damage(str(damage), number, line)


def one_file(folder: Path, patterns: Sequence[str], exclude: tuple[str, ...] = ()) -> Path:
    """The one file of a folder that matches one of the patterns, plain or with ``.gz``.

    Raises:
        ConversionError: none does, or several do; the message lists what lies there.
    """
    if not folder.is_dir():
        raise ConversionError(f"RAW: there is no folder {str(folder)!r}.")
    every = [name for pattern in patterns for name in (pattern, f"{pattern}.gz")]
    found = sorted(
        {file for name in every for file in folder.glob(name) if not file.name.startswith(exclude)}
    )
    if len(found) == 1:
        return found[0]
    there = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
    problem = "no file" if not found else "several files: " + ", ".join(f.name for f in found)
    raise ConversionError(
        f"RAW: {str(folder)!r} has {problem} of the form {' or '.join(every)}. It holds: {there}."
    )


# --- fields -------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Text on one line: control characters and repeated white space become single spaces.

    Text beyond ``MAX_TEXT`` characters is cut.
    """
    return " ".join(CONTROLS.sub(" ", text[:MAX_TEXT]).split())


def identifier(value: object, name: str) -> str:
    """A user's or item's identifier as text."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Damage(f"no {name}")
    if isinstance(value, int) and abs(value) >= 10**20:
        raise Damage(f"the {name} is no identifier")
    text = str(value)
    if clean(text) != text:
        raise Damage(f"white space or control characters in the {name}")
    if text in PANDAS_MISSING:
        raise Damage(f"the {name} would be read as missing")
    return text


def number(value: object, name: str, divisor: int = 1) -> str:
    """A finite number as text, exact, divided by ``divisor``."""
    is_huge = isinstance(value, int) and abs(value) >= 10**20
    if isinstance(value, bool) or is_huge or not PLAIN_NUMBER.fullmatch(str(value).strip()):
        raise Damage(f"the {name} is not a number")
    text = format(Decimal(str(value).strip()) / divisor, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def interaction(
    user: object, item: object, rating: object, timestamp: object, *, divisor: int = 1
) -> Row:
    """A row of the ``.inter`` file; ``timestamp`` divided by ``divisor`` is in seconds."""
    return (
        identifier(user, "user"),
        identifier(item, "item"),
        number(rating, "rating"),
        number(timestamp, "timestamp", divisor),
    )


def csv_fields(line: str, count: int) -> list[str]:
    """The fields of one line of a CSV file."""
    try:
        (fields,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError):
        raise Damage("not a line of CSV") from None
    if len(fields) != count:
        raise Damage(f"not {count} columns")
    return fields


def json_object(line: str) -> dict:
    """The object on one line of JSON."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # also an integer of thousands of digits
        raise Damage("not a line of JSON") from None
    if not isinstance(value, dict):
        raise Damage("not a JSON object")
    return value


# --- writing ------------------------------------------------------------------------------------


class AtomicFiles:
    """The two atomic files of a data set, which appear together or not at all.

    Args:
        out: the data set's folder; the files are named after it.
        overwrite: replace files that are there.

    Raises:
        ConversionError: the files are there and shall not be replaced.
    """

    def __init__(self, out: Path, overwrite: bool) -> None:
        self.out = out
        self.files = {ending: out / f"{out.name}.{ending}" for ending in ("inter", "item")}
        there = [str(file) for file in self.files.values() if file.exists()]
        if there and not overwrite:
            raise ConversionError(
                f"OUT: {' and '.join(there)} exist already; name another folder, or use "
                "--overwrite."
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, rows go to unfinished files; they take their names at the end without error."""
        if self.out.exists() and not self.out.is_dir():
            raise ConversionError(f"OUT: {str(self.out)!r} is a file; name a folder.")
        self.out.mkdir(parents=True, exist_ok=True)
        self.unfinished("seen").unlink(missing_ok=True)  # of a conversion that was killed
        try:
            yield
            for ending, file in self.files.items():
                os.replace(self.unfinished(ending), file)
        finally:
            for ending in (*self.files, "seen"):
                self.unfinished(ending).unlink(missing_ok=True)

    def unfinished(self, ending: str) -> Path:
        return self.out / f".{self.out.name}.{ending}.unfinished"

    def write(self, ending: str, head: Row, rows: Iterable[Row], report: FileReport) -> None:
        """Write one file; its fields, which hold no tabs and line breaks, stand as they are."""
        with self.unfinished(ending).open("w", encoding="utf-8", newline="") as file:
            file.write("\t".join(head) + "\n")
            for row in rows:
                file.write("\t".join(row) + "\n")
                report.written += 1

    def first_of_each(self, rows: Iterable[Row], report: FileReport) -> Iterator[Row]:
        """Rows whose first field no earlier row has; the fields seen lie on the disk."""
        database = sqlite3.connect(self.unfinished("seen"))
        try:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
            for row in rows:
                insert = "INSERT OR IGNORE INTO seen VALUES (?)"
                if database.execute(insert, row[:1]).rowcount:
                    yield row
                else:
                    report.note("repeated items left out")
        finally:
            database.close()
