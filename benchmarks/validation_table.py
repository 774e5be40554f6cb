"""What each setting of the ranker is worth, on validation: quality and time, a row a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STAGES = ("retriever", "with evidence", "ranker", "fused")
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


def validation_row(cell: Mapping[str, Any], metric: str) -> list[str]:
    """A setting's line.

    Args:
        cell: what a cell came to whose fusion was fitted.
        metric: such as ``ndcg@10``, over all rows of validation that the fusion looked at.
    """
    fusion, stages, seconds = cell["fusion"], cell["valid_stages"], cell["seconds"]["stages"]
    evidence = fusion["evidence"]
    # the label prior's rows, where there are any, and the retriever's pass are in it, too
    took = seconds["label prior and fusion"] / max(1, fusion["n_rows"])
    tuned = seconds["tuning the ranker"] / 60 if cell["cell"]["settings"].get("epochs") else 0.0
    return [
        cell["cell"]["label"] or cell["cell"]["model"],
        str(fusion["n_rows"]),
        *(f"{stages[name][metric]:.4f}" if name in stages else "–" for name in STAGES),
        f"{evidence['gain']:.4f}" if evidence else "–",
        f"{fusion['gain']:.4f}",
        f"{fusion['p_value']:.2g}",
        f"{fusion['weight']:.3f}",
        f"{took:.2f}",
        f"{tuned:.1f}" if tuned else "–",
    ]


def validation_rows(cells: Sequence[Mapping[str, Any]], metric: str) -> list[list[str]]:
    """The table's body: a line for each cell that has a fusion."""
    return [validation_row(cell, metric) for cell in cells if cell["fusion"]]
