"""What a run leaves for its report, beside its table of users: one small JSON file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recbole_llamarec.curve import TrainingCurve
from recbole_llamarec.fusion import Fusion


@dataclass
class Journal:
    """What the trainer notes down while it works.

    Attributes:
        seconds: wall time of each stage, by name.
        retriever, ranker: training curves; empty where nothing was trained.
        fusion: what was fitted, if it was.
        validation: metrics by each stage, and by all, of the rows that it was fitted on.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    retriever: TrainingCurve = field(default_factory=TrainingCurve)
    ranker: TrainingCurve = field(default_factory=TrainingCurve)
    fusion: Fusion | None = None
    validation: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the wall time of what happens within; a stage that is repeated counts once."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


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
        label: the index letter behind which the prompt showed it; ``None`` without a prompt.
        probability: the ranker's, among the candidates; ``None`` where it gave none.
        retriever_rank, final_rank: from 1.
        is_target: whether it is the item to find.
    """

    title: str
    label: str | None
    probability: float | None
    retriever_rank: int
    final_rank: int
    is_target: bool


@dataclass(frozen=True)
class SampledUser:
    """One row of the test in full.

    Attributes:
        user: token.
        history: titles of the most recent items that a prompt shows, the oldest first.
        history_length: items in the history.
        target: title of the item to find.
        retriever_rank, final_rank: of the target in the catalogue, from 1.
        was_ranked: whether the candidates of this row were put into the final order.
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
        retriever_name: of the first stage.
        ranking_method: as the key.
        n_candidates: K.
        labels: index letters by place in the prompt; none with likelihood.
        n_permutations: orders in which each user's candidates were shown.
        masks_seen: whether items already seen stand last.
        skips_misses: whether only rows were ranked whose target is a candidate.
        fusion_weight: of the ranker; ``None`` where it stands alone.
        evidence_weight: of the evidence in the fusion, 0 where it takes no part.
        fusion: what was fitted, if it was.
        valid_metric: such as ``NDCG@10``.
        valid_metric_bigger: whether a greater one is better.
        seconds: wall time by stage.
        retriever_curve, ranker_curve: how training went.
        metrics: of the lines of the result table, as ``EvaluationReport`` names them.
        sample: some users.
    """

    package_version: str
    finished: str
    checkpoint: str
    dataset: str
    counts: dict[str, int]
    changed: list[Setting]
    configuration: dict[str, dict[str, str]]
    retriever_name: str
    ranking_method: str
    n_candidates: int
    labels: list[str]
    n_permutations: int
    masks_seen: bool
    skips_misses: bool
    fusion_weight: float | None
    evidence_weight: float
    fusion: Fusion | None
    valid_metric: str
    valid_metric_bigger: bool
    seconds: dict[str, float]
    retriever_curve: TrainingCurve
    ranker_curve: TrainingCurve
    metrics: dict[str, dict[str, float] | None]
    sample: list[SampledUser]

    @property
    def has_ranker(self) -> bool:
        """Whether the run has a second stage."""
        return self.ranking_method != "none"

    @property
    def ranker_was_called(self) -> bool:
        """Whether the ranker read rows of the test; with weight 0 it does not."""
        return self.has_ranker and self.fusion_weight != 0

    @property
    def changes_order(self) -> bool:
        """Whether the final order can be another than the retriever's."""
        return self.ranker_was_called or self.evidence_weight != 0


def write_record(record: RunRecord, file: Path) -> None:
    """Write a record as JSON, with a loss that is not a number as ``NaN``."""
    file.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")


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
        return TypeAdapter(RunRecord).validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{str(file)!r} is no record of a run, or of another version of recbole-llamarec: "
            f"{error}"
        ) from error
