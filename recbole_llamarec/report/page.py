"""The page: from a run's record and its table of users to one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recbole_llamarec import analysis
from recbole_llamarec.checksums import sha256_of
from recbole_llamarec.evaluation.table import EvaluationReport, StageResult
from recbole_llamarec.report import figures
from recbole_llamarec.report.record import REMEDY, RunRecord, read_record, write_whole

FOLDER = Path(__file__).parent


def write_page(checkpoint: Path, out: Path | None = None) -> Path:
    """Write the report of a run from the files beside its checkpoint, which itself is not read.

    Args:
        checkpoint: ``LlamaRec-….pth``.
        out: where to write it; beside the checkpoint if left out.

    Returns:
        where it is.

    Raises:
        FileNotFoundError, ValueError: ``.report.json`` or ``.users.csv`` is missing or damaged.
    """
    record = read_record(checkpoint.with_suffix(".report.json"))
    file = checkpoint.with_suffix(".users.csv")
    users = analysis.read_users(file, record.has_scorers)
    if sha256_of(file) != record.users_sha256:
        raise ValueError(
            f"{str(file)!r} is another table than the one that {checkpoint.stem}.report.json was "
            f"written with. {REMEDY}"
        )
    out = out or checkpoint.with_suffix(".html")
    write_whole(out, render(record, users))
    return out


@dataclass(frozen=True)
class Table:
    """A table of texts; columns from ``first_number`` on are numbers."""

    head: list[str]
    rows: list[list[str]]
    first_number: int = 1


@dataclass(frozen=True)
class Part:
    """A heading with a figure, its numbers and a sentence about it."""

    title: str
    figure: str
    table: Table | None = None
    note: str = ""


def render(record: RunRecord, users: pd.DataFrame) -> str:
    """The page as text; every text of the run is escaped in it.

    Args:
        record: of the run.
        users: its table of users.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["html"] = Markup  # of plotly's own HTML and of the files beside this one
    report = _evaluation(record, users)
    retrieved = analysis.retrieved_users(users, record.n_candidates)
    return environment.get_template("page.html").render(
        run=record,
        notes=notes(record),
        results=list(_results(report)),
        validation=_validation(record),
        caption=report.caption(),
        tests=report.compared(record.valid_metric.lower()),
        moves=moves(record, retrieved) if record.changes_order else {},
        moved=_moved(record, retrieved),
        groups=list(_groups(record, retrieved)),
        places=list(_places(record, retrieved)),
        curves=list(_curves(record)),
        plotly=get_plotlyjs(),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(FOLDER / "page.js").read_text(encoding="utf-8"),
    )


def notes(record: RunRecord) -> list[str]:
    """What the reader must know before the figures: what decides the order."""
    if not record.has_scorers:
        return [
            "This run has no scorer beside the retriever (ranking_method: none). What follows is "
            "the retriever alone, on the terms of a run with a ranker."
        ]
    fusion, weights = record.fusion, record.fusion.weights or {}
    if fusion.is_fitted:
        lines = fusion.summary().splitlines()
    elif not fusion.with_retriever:
        names = " and ".join(weights)
        lines = [f"Without fusion, {names} alone decides the order of the candidates."]
    else:
        lines = [
            f"The weight of {name} beside the retriever was set to {weight:g} (rerank_fusion)."
            for name, weight in weights.items()
        ]
    if not record.changes_order:
        lines.append(
            "The final order is therefore the retriever's. The scorers were asked in the test all "
            "the same, so that the tables show what each comes to alone."
        )
    return lines


def moves(record: RunRecord, retrieved: pd.DataFrame) -> dict[str, int]:
    """How many targets rose, fell and stayed, of the rows whose target is a candidate."""
    before, after = _before_and_after(record, retrieved)
    change = after - before
    return {
        "rose": int((change < 0).sum()),
        "fell": int((change > 0).sum()),
        "stayed": int((change == 0).sum()),
    }


def _before_and_after(record: RunRecord, users: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The target's rank by the retriever and in the final order."""
    return analysis.ranks_of(users, record.retriever), analysis.ranks_of(users, record.final)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _evaluation(record: RunRecord, users: pd.DataFrame) -> EvaluationReport:
    return EvaluationReport(
        stages=record.stages,
        weights=record.fusion.weights or {},
        users=users,
        n_candidates=record.n_candidates,
        masks_seen=record.masks_seen,
        with_retriever=record.fusion.with_retriever,
    )


def _results(report: EvaluationReport) -> Iterable[Table]:
    """The result over all rows, and over those whose target is a candidate."""
    names = list(report.retriever.metrics)
    yield stage_table(f"all rows, {report.n_rows}", report.stages, names)
    stages = report.retrieved_stages()
    yield stage_table(f"retrieved rows, {report.n_retrieved}", stages, names)


def _validation(record: RunRecord) -> Table | None:
    """The result on the rows that the weights were fitted on, if they were."""
    if not record.fusion.is_fitted:
        return None
    stages = [StageResult(name, metrics) for name, metrics in record.validation.items()]
    names = list(dict.fromkeys(name for stage in stages for name in stage.metrics))
    return stage_table("stage", stages, names)


def stage_table(title: str, stages: Sequence[StageResult], metrics: Sequence[str]) -> Table:
    """Metrics, one row a stage; those that a stage has no value of are left open."""
    rows = [[stage.name, *(_number(stage.metrics, name) for name in metrics)] for stage in stages]
    return Table([title, *metrics], rows)


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else "–"


def _moved(record: RunRecord, retrieved: pd.DataFrame) -> str | None:
    if not record.changes_order or retrieved.empty:
        return None
    before, after = _before_and_after(record, retrieved)
    return figures.as_html(figures.moved_figure(before, after, record.n_candidates), "moved")


def _groups(record: RunRecord, retrieved: pd.DataFrame) -> Iterable[Part]:
    """Accuracy by what it may depend on."""
    if retrieved.empty:
        return
    topk = int(record.valid_metric.partition("@")[2] or 10)  # GAUC has no cut-off
    for column, title in analysis.GROUPINGS.items():
        table = analysis.by_group(retrieved, column, topk)
        figure = figures.group_figure(table, column, title, topk)
        numbers = table.rename(columns={column: title})
        yield Part(f"By {title}", figures.as_html(figure, f"by-{column}"), as_table(numbers))


def _places(record: RunRecord, retrieved: pd.DataFrame) -> Iterable[Part]:
    """How often each scorer chose each place first, and how popular its choices are."""
    if retrieved.empty:
        return
    for index, scorer in enumerate(analysis.scorers_of(retrieved)):
        places = analysis.by_place(retrieved, scorer, record.n_candidates)
        labels = record.labels.get(scorer)
        figure = figures.place_figure(places, labels or places["place"].tolist())
        note = analysis.popularity_line(retrieved, scorer)
        if labels:
            note = f"Places are shown by their labels in the prompt. {note}"
        yield Part(scorer, figures.as_html(figure, f"places-{index}"), note=note)


def _curves(record: RunRecord) -> Iterable[Part]:
    """Training of both stages, as far as they were trained."""
    for name, curve, step, loss in (
        (record.retriever, record.retriever_curve, "epoch", "loss, sum over batches"),
        ("The ranker", record.ranker_curve, "optimizer step", "loss"),
    ):
        if not curve.losses:
            continue
        figure = figures.curve_figure(curve, step, loss, record.valid_metric)
        title, best = name, curve.best(record.valid_metric_bigger)
        if best:
            title += f": best {record.valid_metric} {best[1]:.4f} at {step} {best[0]}"
        yield Part(title, figures.as_html(figure, f"curve-{step.replace(' ', '-')}"))


def as_table(frame: pd.DataFrame) -> Table:
    """A table with its numbers as texts."""
    rows = [
        [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row]
        for row in frame.itertuples(index=False)
    ]
    return Table(list(map(str, frame.columns)), rows)
