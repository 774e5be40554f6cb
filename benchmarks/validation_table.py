"""What each setting of the ranker is worth, on validation: quality and time, a row a setting."""

from __future__ import annotations

from collections.abc import Sequence

from results import Line
from stages import DEFAULT_METHOD, FINAL

HEAD = [
    "setting",
    "rows",
    *("retriever", "and evidence", "ranker alone", "fused"),
    "evidence adds, nats",
    "ranker adds, nats",
    "p",
    "weight",
    "s a row",
    "tuning, min",
]
# Of the run's phases. The retriever's pass is in the first, too; version 0.1 named it otherwise.
SCORING, SCORING_OF_0_1 = "fusion", "label prior and fusion"
TUNING = "tuning the ranker"


def validation_row(cell: Line, metric: str) -> list[str]:
    """A setting's line.

    Args:
        cell: the line of a cell whose fusion was fitted.
        metric: such as ``ndcg@10``, over all rows of validation that the fusion looked at.
    """
    fusion, stages, seconds = cell["fusion"], cell["valid_stages"], cell["seconds"]["stages"]
    retriever = next(iter(stages))
    ranker = cell["settings"].get("ranking_method", DEFAULT_METHOD)
    columns = (retriever, f"{retriever} + evidence", ranker, FINAL)
    evidence = fusion["evidence"]
    phase = SCORING if SCORING in seconds else SCORING_OF_0_1
    scoring = seconds[phase] / max(1, fusion["n_rows"])
    tuning = seconds[TUNING] / 60 if cell["settings"].get("epochs", 1) else 0.0
    return [
        cell["label"] or cell["model"],
        str(fusion["n_rows"]),
        *(f"{stages[name][metric]:.4f}" if name in stages else "–" for name in columns),
        f"{evidence['gain']:.4f}" if evidence else "–",
        f"{fusion['gain']:.4f}",
        f"{fusion['p_value']:.2g}",
        f"{fusion['weight']:.3f}",
        f"{scoring:.2f}",
        f"{tuning:.1f}" if tuning else "–",
    ]


def validation_rows(cells: Sequence[Line], metric: str) -> list[list[str]]:
    """The table's body: a line for each cell that has a fusion."""
    return [validation_row(cell, metric) for cell in cells if cell["fusion"]]
