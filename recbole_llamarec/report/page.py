"""The page: from a run's record and its table of users to one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recbole_llamarec.analysis import GROUPINGS, by_group, by_place, popularity_line, read_users
from recbole_llamarec.evaluation import EvaluationReport
from recbole_llamarec.report import figures
from recbole_llamarec.report.record import RunRecord, read_record

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
    users = read_users(checkpoint.with_suffix(".users.csv"), with_ranker=record.has_ranker)
    out = out or checkpoint.with_suffix(".html")
    out.write_text(render(record, users), encoding="utf-8")
    return out


@dataclass(frozen=True)
class Table:
    """A table of texts; columns from ``first_number`` on are numbers."""

    head: list[str]
    rows: list[list[str]]
    first_number: int = 1


@dataclass(frozen=True)
class Part:
    """A heading with a figure and its numbers."""

    title: str
    figure: str
    table: Table | None = None


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
    retrieved = users[users["retriever_rank"] <= record.n_candidates]
    return environment.get_template("page.html").render(
        run=record,
        notes=notes(record),
        result=_result_table(report),
        caption=report.caption(),
        test=_test(report, record.valid_metric.lower()),
        moves=moves(retrieved) if record.changes_order else {},
        moved=_moved(record, retrieved),
        groups=list(_groups(record, retrieved)),
        places=_places(record, retrieved),
        curves=list(_curves(record)),
        plotly=get_plotlyjs(),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(FOLDER / "page.js").read_text(encoding="utf-8"),
    )


def notes(record: RunRecord) -> list[str]:
    """What the reader must know before the figures: who has decided the order."""
    if not record.has_ranker:
        return [
            "This run has no ranker (ranking_method: none). What follows is the retriever alone, "
            "on the terms of a run with a ranker."
        ]
    found = record.fusion.summary().splitlines() if record.fusion else []
    if not record.ranker_was_called:
        if not found:
            found = ["The ranker's weight was set to 0 (rerank_fusion: 0)."]
        order = (
            "the order is that of the retriever and the evidence"
            if record.changes_order
            else "both stages have the same order, no target moved"
        )
        return [
            *found,
            f"The language model was therefore not called in the test: {order}, and there are no "
            "probabilities and no choices of labels to show.",
        ]
    if record.ranking_method == "generate":
        found.append(
            "The language model wrote the ranked titles, untuned (ranking_method: generate), so "
            "that candidates have no probabilities."
        )
    if record.fusion_weight is None:
        found.append("The ranker alone decides the order of the candidates, without fusion.")
    elif not record.fusion:
        found.append(f"The ranker's weight was set to {record.fusion_weight:g} (rerank_fusion).")
    return found


def moves(retrieved: pd.DataFrame) -> dict[str, int]:
    """How many targets rose, fell and stayed, of the rows whose target is a candidate."""
    change = retrieved["llamarec_rank"] - retrieved["retriever_rank"]
    return {
        "rose": int((change < 0).sum()),
        "fell": int((change > 0).sum()),
        "stayed": int((change == 0).sum()),
    }


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _evaluation(record: RunRecord, users: pd.DataFrame) -> EvaluationReport:
    return EvaluationReport(
        retriever=record.metrics["retriever"] or {},
        llamarec=record.metrics["llamarec"],
        retriever_on_retrieved=record.metrics["retriever_on_retrieved"] or {},
        llamarec_on_retrieved=record.metrics["llamarec_on_retrieved"],
        users=users,
        n_candidates=record.n_candidates,
        masks_seen=record.masks_seen,
        retriever_name=record.retriever_name,
    )


def _result_table(report: EvaluationReport) -> Table:
    names = list(report.retriever)
    return Table(
        ["", "rows", *names],
        [
            [stage.name, str(stage.n_rows), *(_number(stage.metrics, metric) for metric in names)]
            for stage in report.stages()
        ],
    )


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else "–"


def _test(report: EvaluationReport, metric: str) -> str | None:
    """The paired test, where both stages have the metric by user."""
    is_known = {f"retriever_{metric}", f"llamarec_{metric}"} <= set(report.users)
    return report.compared(metric) if is_known else None


def _moved(record: RunRecord, retrieved: pd.DataFrame) -> str | None:
    if not record.changes_order or retrieved.empty:
        return None
    return figures.as_html(figures.moved_figure(retrieved, record.n_candidates), "moved")


def _groups(record: RunRecord, retrieved: pd.DataFrame) -> Iterable[Part]:
    """Accuracy by what it may depend on."""
    if retrieved.empty:
        return
    topk = int(record.valid_metric.split("@")[1])
    for column, title in GROUPINGS.items():
        table = by_group(retrieved, column, topk)
        figure = figures.group_figure(table, column, title, topk)
        numbers = table.rename(columns={column: title})
        yield Part(f"By {title}", figures.as_html(figure, f"by-{column}"), as_table(numbers))


def _places(record: RunRecord, retrieved: pd.DataFrame) -> tuple[str, str] | None:
    """How often each label was chosen, as a figure, and how popular the choices are."""
    if "shown_first" not in retrieved or retrieved.empty:
        return None
    places = by_place(retrieved, record.n_candidates)
    figure = figures.place_figure(places, record.labels or places["place"].tolist())
    return figures.as_html(figure, "places"), popularity_line(retrieved)


def _curves(record: RunRecord) -> Iterable[Part]:
    """Training of both stages, as far as they were trained."""
    for name, curve, step, loss in (
        (record.retriever_name, record.retriever_curve, "epoch", "loss, sum over batches"),
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
