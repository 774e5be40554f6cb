"""The finished cells of a suite, in two files of its folder.

``cells.jsonl`` has a line for each cell: its identity, its settings and all that was measured.
``users.csv.gz`` has each user's rank and metrics in each stage, for paired tests.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from cell_lines import line_text, read_line

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.evaluation.users_file import Table

CELLS = "cells.jsonl"
USERS = "users.csv.gz"
USERS_REMEDY = "Restore a copy of it; without it there are no paired tests."
Line = Mapping[str, Any]
Results = Mapping[str, Line]  # by id


def read_cells(out: Path) -> dict[str, Line]:
    """The lines of all cells that a folder of results has, by id.

    Raises:
        ValueError: a line is no finished cell, or there twice; names the line.
    """
    file = out / CELLS
    if not file.is_file():
        return {}
    lines: dict[str, Line] = {}
    content = file.read_bytes().removesuffix(b"\n").split(b"\n")
    for number, text in enumerate(content, start=1):
        try:
            line = read_line(text.decode())
            if line["id"] in lines:
                raise ValueError(f"the cell {line['id']} is there twice")
        except ValueError as error:
            raise ValueError(
                f"{file}, line {number}: not a finished cell ({error}); delete this line, and "
                "its cell is run again"
            ) from error
        lines[line["id"]] = line
    return lines


def read_report(file: Path, needed: str) -> dict[str, Any]:
    """The figures that a benchmark has written before.

    Args:
        file: JSON.
        needed: a part that it must have.

    Raises:
        ValueError: it is no such file.
    """
    try:
        report = json.loads(file.read_bytes())
        if not isinstance(report, dict) or not isinstance(report.get(needed, {}), dict):
            raise ValueError(f"{needed!r} is no JSON object in it")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} holds no figures of this benchmark ({error}); restore a copy of it, or remove "
            "it to measure anew."
        ) from error
    return report


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
    text = "".join(f"{line_text(line)}\n" for line in lines.values())
    write_whole(out / CELLS, text.encode())


def write_users(out: Path, users: pd.DataFrame) -> None:
    """Write ``users.csv.gz`` anew, a user's rows together: it is smaller so."""
    ordered = users.sort_values(["user", "cell"], kind="stable").set_index(["cell", "user"])
    write_whole(out / USERS, gzip.compress(ordered.to_csv().encode(), mtime=0))


def read_users(out: Path, as_text: bool = False) -> pd.DataFrame:
    """Each user's rank and metrics in each stage of each cell.

    Args:
        out: folder of the suite's results.
        as_text: all columns as they stand in the file; they are checked all the same.

    Returns:
        columns ``cell`` and ``user``, and for each stage of any cell ``rank:<stage>`` and
        ``<metric>@<k>:<stage>``, empty in the rows of cells without it; no rows without the file.

    Raises:
        ValueError: the file is damaged; names the line.
    """
    file = out / USERS
    keys = ("cell", "user")
    if not file.is_file():
        return pd.DataFrame(columns=list(keys))
    table = Table(file, USERS_REMEDY)
    if missing := set(keys) - set(table.fields):
        raise table.damaged(1, f"the header lacks {sorted(missing)}")
    users = table.numbers(texts=keys, may_lack_stages=True)
    table.check_rows()
    if as_text:
        return table.fields
    counts = users.groupby("cell").size()
    for id_, line in read_cells(out).items():
        if id_ in counts and counts[id_] != line["n_rows"]:
            raise ValueError(
                f"{file} has {counts[id_]} rows of the cell {id_}, whose test had "
                f"{line['n_rows']}. {USERS_REMEDY}"
            )
    return users


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, file)
