"""The finished cells of a suite, in two files of its folder.

``cells.jsonl`` has a line for each cell: its identity, its settings and all that was measured.
``users.csv.gz`` has each user's rank and metrics in each stage, for paired tests.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

CELLS = "cells.jsonl"
USERS = "users.csv.gz"
Line = Mapping[str, Any]
Results = Mapping[str, Line]  # by id


def read_cells(out: Path) -> dict[str, Line]:
    """The lines of all cells that a folder of results has, by id.

    Raises:
        ValueError: a line is no JSON object with an id.
    """
    file = out / CELLS
    if not file.is_file():
        return {}
    lines = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            lines[line["id"]] = line
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{file}, line {number}: not a finished cell ({error!r}); delete this line, and "
                "its cell is run again"
            ) from error
    return lines


def retired_cells(lines: Results, current: Results) -> dict[str, Line]:
    """Cells that were measured with settings which the package or the suite no longer has."""
    return {id_: line for id_, line in lines.items() if line.get("retired") and id_ not in current}


def add_cell(out: Path, line: Line, users: pd.DataFrame | None = None) -> None:
    """Add a finished cell to a folder of results; a line of the same id is replaced.

    Both files appear by being renamed, so that neither is ever half written.

    Args:
        out: folder of the suite's results.
        line: what ``cells.jsonl`` is to hold; ``id`` is its identity.
        users: from :func:`stages.users_table`.
    """
    out.mkdir(parents=True, exist_ok=True)
    if users is not None:
        others = read_users(out, as_text=True)
        others = others[others["cell"] != line["id"]]
        write_users(out, pd.concat([others, users.assign(cell=line["id"])]))
    write_cells(out, {**read_cells(out), line["id"]: line})


def write_cells(out: Path, lines: Results) -> None:
    """Write ``cells.jsonl`` anew."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    write_whole(out / CELLS, text.encode())


def write_users(out: Path, users: pd.DataFrame) -> None:
    """Write ``users.csv.gz`` anew, a user's rows together: it is smaller so."""
    ordered = users.sort_values(["user", "cell"], kind="stable").set_index(["cell", "user"])
    write_whole(out / USERS, gzip.compress(ordered.to_csv().encode(), mtime=0))


def read_users(out: Path, as_text: bool = False) -> pd.DataFrame:
    """Each user's rank and metrics in each stage of each cell.

    Args:
        out: folder of the suite's results.
        as_text: all columns as they stand in the file.

    Returns:
        columns ``cell`` and ``user``, and for each stage of any cell ``rank:<stage>`` and
        ``<metric>@<k>:<stage>``, empty in the rows of cells without it; no rows without the file.
    """
    file = out / USERS
    if not file.is_file():
        return pd.DataFrame(columns=["cell", "user"])
    if as_text:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    names = {"cell": str, "user": str}
    return pd.read_csv(file, dtype=names, keep_default_na=False, na_values="")  # a user may be "NA"


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, file)
