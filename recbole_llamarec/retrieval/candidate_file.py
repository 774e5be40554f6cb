"""Tables of candidates that another recommender has written: user, item and score.

Three forms, told apart by the file's ending:

    .tsv      a header with the columns user, item and score, and fields parted by tabs
    .run      TREC run form, without a header: user Q0 item rank score tag, parted by white space
    .parquet  the columns user, item and score

Users and items are tokens of the data set. The score orders a user's candidates; the rank of the
TREC form is not read, as trec_eval does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

PARTS = ("valid", "test")
COLUMNS = ("user", "item", "score")
LARGEST_SCORE = 1e30  # so that differences are finite in float32
Row = tuple[int, str, str, object]  # line (of Parquet: row), user, item, score


@dataclass(frozen=True)
class CandidateTable:
    """The rows of a file whose user and item the data set has.

    Attributes:
        users, items: internal ids, int64 ``[rows]``; no pair repeats.
        scores: float32 ``[rows]``.
        n_rows: rows of the file.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    n_rows: int


def files_of(setting: str | Mapping[str, str]) -> list[Path]:
    """The files that the key ``retriever_file`` names: one, or one for each of ``PARTS``."""
    if isinstance(setting, str):
        return [Path(setting)]
    return [Path(setting[part]) for part in PARTS]


def read_candidates(
    file: Path, user_ids: Mapping[str, int], item_ids: Mapping[str, int]
) -> CandidateTable:
    """Read a table of candidates.

    Args:
        file: with an ending of ``READERS``.
        user_ids, item_ids: internal ids of tokens; 0 is padding.

    Returns:
        its rows, without those whose user or item has no id.

    Raises:
        ValueError: the file is no such table, a score is no number, a user has an item twice, or
            no row is of the data set; names file and line.
        ImportError: what reads Parquet is not installed.
    """
    lines, users, items, scores = [], [], [], []
    n_rows = 0
    for line, user, item, value in READERS[file.suffix](file):
        n_rows += 1
        score = _score(value)
        if score is None:
            raise _damaged(file, line, f"the score {value!r} must be a number from -1e30 to 1e30")
        ids = user_ids.get(user, 0), item_ids.get(item, 0)
        if all(ids):
            lines.append(line)
            users.append(ids[0])
            items.append(ids[1])
            scores.append(score)
    if not lines:
        raise ValueError(
            f"{file}: none of its {n_rows} rows has a user and an item of the data set, whose "
            f"users are such as {_example(user_ids)!r} and items such as {_example(item_ids)!r}."
        )
    table = CandidateTable(
        np.array(users), np.array(items), np.array(scores, dtype=np.float32), n_rows
    )
    _check_pairs(file, np.array(lines), table)
    return table


def _check_pairs(file: Path, lines: np.ndarray, table: CandidateTable) -> None:
    order = np.lexsort((lines, table.items, table.users))
    pairs = np.stack([table.users, table.items])[:, order]
    again = (pairs[:, 1:] == pairs[:, :-1]).all(0)
    if again.any():
        place = int(again.argmax())
        first, second = lines[order[place]], lines[order[place + 1]]
        raise _damaged(file, second, f"its user and item stand in line {first} already")


def _score(value: object) -> float | None:
    """A score as a number; ``None`` if it is none, or too large."""
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return score if abs(score) <= LARGEST_SCORE else None


def _example(ids: Mapping[str, int]) -> str:
    return next((token for token, number in ids.items() if number), "")


def _damaged(file: Path, line: int, fault: str) -> ValueError:
    return ValueError(f"{file}, line {line}: {fault}.")


def _text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    with file.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: it is no text in UTF-8 ({error.reason}).") from error


def _tsv_rows(file: Path) -> Iterator[Row]:
    places: list[int] = []
    width = 0
    for number, line in _text_lines(file):
        fields = line.split("\t")
        if not width:
            if not set(COLUMNS) <= set(fields):
                raise _damaged(file, number, f"the header must name {', '.join(COLUMNS)}")
            places, width = [fields.index(name) for name in COLUMNS], len(fields)
            continue
        if len(fields) != width:
            raise _damaged(file, number, f"{len(fields)} fields, where the header has {width}")
        user, item, score = (fields[place] for place in places)
        yield number, user, item, score


def _run_rows(file: Path) -> Iterator[Row]:
    for number, line in _text_lines(file):
        fields = line.split()
        if len(fields) != 6:
            raise _damaged(
                file, number, f"{len(fields)} fields, but a TREC run has 6: user Q0 item rank "
                "score tag"
            )  # fmt: skip
        yield number, fields[0], fields[2], fields[4]


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        table = pd.read_parquet(file)
    except ImportError as error:
        raise ImportError(
            f"{file}: Parquet is read by pyarrow, which is not installed: pip install pyarrow."
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: it cannot be read as Parquet ({error}).") from error
    if not set(COLUMNS) <= set(table):
        raise ValueError(f"{file}: it must have the columns {', '.join(COLUMNS)}.")
    users, items, scores = (table[name].tolist() for name in COLUMNS)
    for number, (user, item, score) in enumerate(zip(users, items, scores, strict=True), start=1):
        yield number, str(user), str(item), score


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": _tsv_rows,
    ".run": _run_rows,
    ".parquet": _parquet_rows,
}
