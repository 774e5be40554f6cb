"""What a line of ``cells.jsonl`` must hold, so that no table is made of a damaged one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from suite import Cell

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.evaluation.metrics import is_rank_metric

DIGEST = "sha256"
Metrics = dict[str, float]
FUSION_PHASES = ("fusion", "label prior and fusion")  # as version 0.1 named it


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Split(_Part):
    users: int
    items: int
    interactions: int
    mean_length: float
    sha256: str


class _Seconds(_Part):
    train: float
    stages: dict[str, float] = {}


class _Gain(_Part):
    gain: float


class _Fusion(_Part):
    n_rows: int
    weight: float
    gain: float
    p_value: float
    evidence: _Gain | None


class FinishedCell(_Part):
    """A line; what it holds beside this is kept and not read."""

    id: str
    dataset: str
    model: str
    seed: int
    choice: dict[str, Any]
    settings: dict[str, Any]
    run_settings: dict[str, Any]
    retriever: str | None
    label: str
    validation_only: bool
    split: _Split
    valid_score: float
    curve: list[tuple[float, float]]
    seconds: _Seconds
    threads: int
    peak_memory_mb: int
    machine: str
    versions: dict[str, str]
    fusion: _Fusion | None = None
    valid_stages: dict[str, Metrics] = {}
    retired: bool = False


class TestedCell(FinishedCell):
    """A line of a cell that was tested, too."""

    validation_only: Literal[False]
    test: dict[str, Metrics]
    retrieved: dict[str, Metrics]
    n_rows: int
    n_retrieved: int


def read_line(text: str) -> dict[str, Any]:
    """A cell's line.

    Raises:
        ValueError: it is no finished cell; says which of its fields is wrong.
    """
    try:
        line = json.loads(
            text,
            object_pairs_hook=_without_repetition,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    model = FinishedCell if line.get("validation_only") is True else TestedCell
    try:
        cell = model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    _check_metrics(line, cell)
    digest = line.pop(DIGEST, None)  # lines of earlier versions have none
    if digest is not None and digest != _digest(line):
        raise ValueError("it was changed since it was written")
    identity = {field.name: line[field.name] for field in fields(Cell)}
    if Cell(**identity).id != cell.id:
        raise ValueError("its id is not that of its settings")
    return line


def line_text(line: Mapping[str, Any]) -> str:
    """A cell's line with its digest."""
    return json.dumps({**line, DIGEST: _digest(line)}, ensure_ascii=False)


def _digest(line: Mapping[str, Any]) -> str:
    """SHA-256 of all that a run has written; people set ``retired`` by hand."""
    content = json.dumps({key: value for key, value in line.items() if key != "retired"})
    return hashlib.sha256(content.encode()).hexdigest()


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) < len(pairs):
        raise ValueError(f"a name is there twice among {[name for name, _ in pairs][:5]}")
    return content


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _check_metrics(line: Mapping[str, Any], cell: FinishedCell) -> None:
    """Each part has a final stage, with every metric that another stage or part has.

    Raises:
        ValueError: they have not; or a fusion lacks its time.
    """
    parts = ["valid_stages"] if cell.fusion else []
    for part in [*parts, *(() if cell.validation_only else ("test", "retrieved"))]:
        stages = line.get(part, {})
        if "final" not in stages:
            raise ValueError(f"{part}: the stage 'final' is missing")
        for stage, metrics in stages.items():  # a scorer's stage may have fewer
            if unknown := set(metrics) - set(stages["final"]):
                raise ValueError(f"{part}: {stage} has {sorted(unknown)}, which 'final' lacks")
    if not cell.validation_only:
        tested = line["test"]["final"]
        if (metric := str(line["run_settings"].get("valid_metric", "")).lower()) not in tested:
            raise ValueError(f"test: 'final' lacks the validation metric {metric!r}")
        of_ranks = {metric for metric in tested if is_rank_metric(metric)}
        if line["n_retrieved"] and set(line["retrieved"]["final"]) != of_ranks:
            raise ValueError("retrieved: 'final' has other metrics than in test")
    if cell.validation_only and cell.fusion and not set(FUSION_PHASES) & set(cell.seconds.stages):
        raise ValueError(f"seconds.stages: {FUSION_PHASES[0]!r} is missing")
