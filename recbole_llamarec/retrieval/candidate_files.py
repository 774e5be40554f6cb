"""Files of candidates that any recommender has proposed: user, item and score, a row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

GIVEN = "file"  # value of the key retriever
KEY = "retriever_file"
COLUMNS = ("user_id", "item_id", "score")
PARTS = ("valid", "test")  # of the data, whose rows the candidates are for


class CandidateRow(NamedTuple):
    """One candidate of one user.

    Attributes:
        place: where it stands, for messages.
        user, item: tokens.
        score: higher is better.
    """

    place: str
    user: str
    item: str
    score: float


def paths_of(value: str | Mapping[str, str]) -> dict[str, Path]:
    """The file of each part of the data.

    Args:
        value: of the key ``retriever_file``, one path for both parts or one for each.
    """
    given = dict.fromkeys(PARTS, value) if isinstance(value, str) else value
    return {part: Path(given[part]) for part in PARTS}


def check_file(file: Path) -> None:
    """Check what can be known of a file before it is read.

    Raises:
        FileNotFoundError, ValueError: there is none, or its ending is that of no form.
    """
    if file.suffix not in READERS:
        raise ValueError(
            f"{KEY}: {str(file)!r} must end in {', '.join(READERS)}: a table of "
            f"{', '.join(COLUMNS)} as tab-separated text or Parquet, or a run in TREC's form."
        )
    if not file.is_file():
        raise FileNotFoundError(f"{KEY}: there is no file {str(file)!r}; check the path.")


def read_candidates(file: Path) -> Iterator[CandidateRow]:
    """Read a file of candidates, in the form that its ending names.

    ``.tsv`` is tab-separated text in UTF-8 whose head line names the columns ``user_id``,
    ``item_id`` and ``score``; ``.parquet`` a table with these; ``.run`` and ``.trec`` are TREC's
    form, ``user Q0 item rank score tag``, in which the score alone decides. Further columns are
    left out. Users and items are tokens of the data set, compared as text.

    Yields:
        each row, in the order of the file.

    Raises:
        FileNotFoundError, ValueError, ImportError: names the file, and the line or row.
    """
    check_file(file)
    seen: set[tuple[str, str]] = set()
    for place, user, item, text in READERS[file.suffix](file):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{place}: the score {text!r} must be a finite number.")
        if not user or not item:
            raise ValueError(f"{place}: the user {user!r} or the item {item!r} is empty.")
        if (user, item) in seen:
            raise ValueError(
                f"{place}: the item {item!r} of user {user!r} stands there twice; keep one row."
            )
        seen.add((user, item))
        yield CandidateRow(place, user, item, score)


Fields = tuple[str, str, str, str]  # place, user, item, score


def _of_text(file: Path) -> Iterator[Fields]:
    lines = _lines(file)
    place, head = next(lines, (f"{KEY}: {file}, line 1", ""))
    names = [name.split(":")[0] for name in head.split("\t")]  # RecBole's heads name types too
    if missing := [name for name in COLUMNS if names.count(name) != 1]:
        raise ValueError(f"{place}: the head line {head!r} must name {missing[0]} once.")
    columns = [names.index(name) for name in COLUMNS]
    for place, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            raise ValueError(f"{place}: {len(fields)} fields, where the head has {len(names)}.")
        user, item, score = (fields[column] for column in columns)
        yield place, user, item, score


def _of_run(file: Path) -> Iterator[Fields]:
    for place, line in _lines(file):
        fields = line.split()
        if len(fields) != 6:
            raise ValueError(
                f"{place}: {len(fields)} fields, where TREC's form has 6: user Q0 item rank score "
                "tag."
            )
        yield place, fields[0], fields[2], fields[4]


def _of_parquet(file: Path) -> Iterator[Fields]:
    try:
        table = pd.read_parquet(file)
    except ImportError as error:
        raise ImportError(
            f"{KEY}: {str(file)!r} is Parquet, which needs fastparquet or pyarrow: pip install "
            "'recbole-llamarec[parquet]'"
        ) from error
    except Exception as error:  # of the library, of any kind
        raise ValueError(f"{KEY}: {str(file)!r} is no whole Parquet file ({error}).") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{KEY}: {str(file)!r} has no column {missing[0]}; it has {[*table]}.")
    columns = [table[name].tolist() for name in COLUMNS]
    for row, (user, item, score) in enumerate(zip(*columns, strict=True), start=1):
        yield f"{KEY}: {file}, row {row}", _token(user), _token(item), str(score)


def _token(value: object) -> str:
    """An id as text; a missing one is empty."""
    return "" if value is None or value != value else str(value)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not empty, each with its place."""
    place = f"{KEY}: {file}"
    try:
        with file.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(text, start=1):
                place = f"{KEY}: {file}, line {number}"
                if line.strip():
                    yield place, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"behind {place}: it is no text in UTF-8 ({error.reason}).") from error


READERS: dict[str, Callable[[Path], Iterator[Fields]]] = {
    ".tsv": _of_text,
    ".run": _of_run,
    ".trec": _of_run,
    ".parquet": _of_parquet,
}
