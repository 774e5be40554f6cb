"""Damage files that people hand to a command, and see what it makes of them.

A damaged file must be refused, in an error that names the file (and the line, where it has lines),
or be read as if it were whole. All else is a finding: another exception, an error that does not say
where, or another value than that of the whole file.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cell_lines import FinishedCell, TestedCell
from damages import CSV, JSON, TEXT, Damage, packed_damages
from pydantic import BaseModel
from results import CELLS, USERS, read_cells, read_users, write_cells, write_users

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec import analysis
from recbole_llamarec.recommend import histories_of
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.report.record import read_record

RESULTS = Path(__file__).parent / "results" / "retrievers"
N_HISTORIES = 30
N_USERS = 40  # of the suite's table of users


@dataclass
class Tally:
    """What became of the damaged versions of one file.

    Attributes:
        refused: named by an error.
        equal: read with the values of the whole file.
        findings: what became of the others.
    """

    refused: int = 0
    equal: int = 0
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        file: a whole one.
        read: what a command makes of it.
        damages: by name.
        is_same: whether what was read is right, given what the whole file holds.
        has_lines: whether an error must name one.
    """

    file: Path
    read: Callable[[Path], Any]
    damages: Mapping[str, Damage]
    is_same: Callable[[Any, Any], bool] = lambda found, whole: found == whole
    has_lines: bool = True


def damaged(target: Target, count: int, generator: random.Random) -> Tally:
    """Damage a file many times, each time from the whole one, which is put back at the end."""
    content, whole, tally = target.file.read_bytes(), target.read(target.file), Tally()
    names = list(target.damages)
    try:
        for trial in range(count):
            name = names[trial % len(names)]
            target.file.write_bytes(changed := target.damages[name](content, generator))
            if changed == content:
                tally.equal += 1
                continue
            fault = outcome_of(target, whole, tally)
            if fault:
                tally.findings.append(f"{name}: {fault}")
    finally:
        target.file.write_bytes(content)
    return tally


def outcome_of(target: Target, whole: Any, tally: Tally) -> str:
    """Read a damaged file once and count it; what is a finding is returned."""
    try:
        found = target.read(target.file)
    except (ValueError, SystemExit) as error:
        where = [re.escape(target.file.name), *([r"line \d+"] if target.has_lines else [])]
        if not all(re.search(part, str(error)) for part in where):
            return f"an error that does not say where: {type(error).__name__}: {error}"
        tally.refused += 1
    except Exception as error:  # what a command would show as a traceback
        return f"{type(error).__name__}: {error}"
    else:
        if not target.is_same(found, whole):
            return "read as other values"
        tally.equal += 1
    return ""


def targets(checkpoint: Path, data_path: Path, folder: Path) -> dict[str, Target]:
    """Every kind of file, whole.

    Args:
        checkpoint: of a run with its record and table of users.
        data_path: of its data set.
        folder: for the other files.
    """
    users = checkpoint.with_suffix(".users.csv")
    packed = folder / "run.users.csv.gz"
    packed.write_bytes(gzip.compress(users.read_bytes()))
    write_cells(folder, read_cells(RESULTS))
    suite = folder / "suite"
    suite.mkdir()
    users_of_suite = read_users(RESULTS, as_text=True)
    some = users_of_suite[users_of_suite["user"].isin(users_of_suite["user"].unique()[:N_USERS])]
    write_users(suite, some)
    counts = some.groupby("cell").size()
    known = {id_: line for id_, line in read_cells(RESULTS).items() if id_ in counts}
    write_cells(suite, {id_: {**line, "n_rows": int(counts[id_])} for id_, line in known.items()})
    recommender = Recommender.from_checkpoint(checkpoint, data_path)
    histories = folder / "in.jsonl"
    tokens = recommender.tokens[1:].tolist()
    rows = [json.dumps(tokens[n : n + 1 + n % 7]) + "\n" for n in range(N_HISTORIES)]
    histories.write_text("".join(rows), encoding="utf-8")
    candidates = recommender.model.settings.rerank_candidates
    return {
        "users' table": Target(users, lambda file: described(file, candidates), TEXT | CSV),
        "users' table, packed": Target(
            packed, lambda file: described(file, candidates), TEXT | packed_damages()
        ),
        "record": Target(
            checkpoint.with_suffix(".report.json"),
            read_record,
            TEXT | JSON,
            lambda found, whole: repr(found) == repr(whole),  # a loss may be NaN
            has_lines=False,
        ),
        "cells.jsonl": Target(folder / CELLS, cells_of, TEXT | JSON, are_parts),
        "suite's users.csv.gz": Target(
            suite / USERS,
            lambda file: read_users(file.parent).sort_values(["cell", "user"]).to_csv(index=False),
            TEXT | packed_damages(but=["another number"]),  # gzip's own checksum is for these
            has_lines=False,
        ),
        "histories": Target(
            histories,
            lambda file: list(histories_of(file, recommender)),
            TEXT | {name: JSON[name] for name in ("value of another type",)},
            lambda found, whole: all(row in whole for row in found),  # each line is a request
        ),
    }


def described(file: Path, n_candidates: int) -> str:
    """What ``analysis`` prints of a table."""
    with redirect_stdout(io.StringIO()) as out:
        analysis.main([str(file), f"--candidates={n_candidates}"])
    return out.getvalue()


def cells_of(file: Path) -> dict[str, Any]:
    """What the tables of a suite read of each cell."""
    return {
        id_: part_read(
            (FinishedCell if line["validation_only"] else TestedCell).model_validate(
                line, strict=False
            )
        )
        for id_, line in read_cells(file.parent).items()
    }


def part_read(value: Any) -> Any:
    """A line without fields that are kept and not read."""
    if isinstance(value, BaseModel):
        return {name: part_read(getattr(value, name)) for name in type(value).model_fields}
    return value


def are_parts(found: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether all cells are those of the whole file; one that is missing is run again."""
    return all(whole.get(id_) == line for id_, line in found.items())
