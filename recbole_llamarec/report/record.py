"""What a run leaves for its report, beside its table of users: one small JSON file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole_llamarec.evaluation.table import StageResult
from recbole_llamarec.files import written_whole
from recbole_llamarec.scoring.fusion import Fusion
from recbole_llamarec.tuning.curve import TrainingCurve

DIGEST = "sha256"  # of the record itself, beside its fields
REMEDY = "Evaluate the checkpoint again, or restore a copy of the file."


@dataclass(frozen=True)
class Setting:
    """A key that the user has set to something else than its default; both values as text."""

    key: str
    value: str
    default: str


@dataclass(frozen=True)
class SampledCandidate:
    """One of a sampled user's candidates.

    Attributes:
        title: its text.
        label: the label behind which the prompt showed it; ``None`` where no prompt has labels.
        retriever_rank, final_rank: from 1.
        is_target: whether it is the item to find.
        probabilities: each scorer's, among the candidates, by its name; empty where the row was
            not scored.
    """

    title: str
    label: str | None
    retriever_rank: int
    final_rank: int
    is_target: bool
    probabilities: dict[str, float]


@dataclass(frozen=True)
class SampledUser:
    """One row of the test in full.

    Attributes:
        user: token.
        history: titles of the most recent items that a prompt shows, the oldest first.
        history_length: items in the history.
        target: title of the item to find.
        retriever_rank, final_rank: of the target in the catalogue, from 1.
        was_ranked: whether the candidates of this row were scored.
        candidates: in the final order.
    """

    user: str
    history: list[str]
    history_length: int
    target: str
    retriever_rank: int
    final_rank: int
    was_ranked: bool
    candidates: list[SampledCandidate]


@dataclass(frozen=True)
class RunRecord:
    """A run as its report shows it; ranks and metrics of all users are in the table of users.

    Attributes:
        package_version: of this package.
        finished: local date and time.
        checkpoint: file name.
        dataset: name.
        counts: ``users`` and ``items`` after filtering.
        changed: keys that the user has set to something else than the default.
        configuration: every key's value as text, by group and key.
        n_candidates: K.
        masks_seen: the key ``rerank_mask_seen``.
        skips_misses: whether only rows were scored whose target is a candidate.
        fusion: how the retriever and the scorers decide, and how that was fitted.
        stages: metrics of each stage: the retriever's first, the final order's last.
        validation: of each stage by its name, on the rows that the fusion was fitted on.
        labels: by scorer and place among the candidates, of those whose prompts have labels.
        valid_metric: such as ``NDCG@10``.
        valid_metric_bigger: whether a greater one is better.
        seconds: wall time by phase.
        retriever_curve, ranker_curve: how training went.
        sample: some users.
        users_sha256: digest of the table of users, in hexadecimal.
    """

    package_version: str
    finished: str
    checkpoint: str
    dataset: str
    counts: dict[str, int]
    changed: list[Setting]
    configuration: dict[str, dict[str, str]]
    n_candidates: int
    masks_seen: bool | str
    skips_misses: bool
    fusion: Fusion
    stages: list[StageResult]
    validation: dict[str, dict[str, float]]
    labels: dict[str, list[str]]
    valid_metric: str
    valid_metric_bigger: bool
    seconds: dict[str, float]
    retriever_curve: TrainingCurve
    ranker_curve: TrainingCurve
    sample: list[SampledUser]
    users_sha256: str

    @property
    def retriever(self) -> str:
        """Name of the first stage."""
        return self.stages[0].name

    @property
    def final(self) -> str:
        """Name of the final order's stage; the retriever's where there is no scorer."""
        return self.stages[-1].name

    @property
    def has_scorers(self) -> bool:
        """Whether anything beside the retriever scored the candidates."""
        return len(self.stages) > 1

    @property
    def changes_order(self) -> bool:
        """Whether the final order can be another than the retriever's."""
        return self.has_scorers and self.fusion.changes_order


def write_record(record: RunRecord, file: Path) -> None:
    """Write a record and its digest as JSON, with a loss that is not a number as ``NaN``."""
    content = asdict(record)
    write_whole(file, json.dumps(content | {DIGEST: _digest(content)}, indent=1))


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of a record as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_whole(file: Path, text: str) -> None:
    """Write a file so that its name never stands for a part of it."""
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")


def read_record(file: Path) -> RunRecord:
    """Read what :func:`write_record` wrote.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no such record.
    """
    from pydantic import TypeAdapter, ValidationError

    if not file.is_file():
        raise FileNotFoundError(
            f"{str(file)!r} is not there. A run writes it beside its checkpoint when it is tested; "
            "give the path of a run's checkpoint."
        )
    try:
        text = file.read_bytes().decode()
        content = json.loads(text)
        record = TypeAdapter(RunRecord).validate_json(text, strict=True)
        digest = content.pop(DIGEST)
    except (ValidationError, ValueError, RecursionError, KeyError) as error:
        raise ValueError(
            f"{str(file)!r} is no record of a run, or of another version of recbole-llamarec: "
            f"{error}. {REMEDY}"
        ) from error
    if digest != _digest(content):
        raise ValueError(
            f"{str(file)!r} is no record of a run any more: it was changed since it was written. "
            f"{REMEDY}"
        )
    return record
