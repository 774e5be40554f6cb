"""The result table: both stages side by side, over all rows and where retrieval succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct
from tabulate import tabulate

# Metrics that depend on nothing but the target's rank. Coverage, diversity and popularity metrics
# depend on every recommended item, so every row must be ranked for them.
RANK_METRICS = frozenset({"recall", "mrr", "ndcg", "hit", "precision", "map"})
ROW_RESOURCES = ("rec.topk", "rec.items", "rec.meanrank", "rec.score")
DATA_RESOURCES = ("data.num_items", "data.num_users", "data.count_items", "data.count_users")


class RecordingEvaluator(Evaluator):
    """RecBole's evaluator, which keeps what it evaluated so that subsets can be evaluated too."""

    collected: DataStruct

    def evaluate(self, dataobject: DataStruct):
        self.collected = dataobject
        return super().evaluate(dataobject)

    def evaluate_rows(self, rows: torch.Tensor) -> Mapping[str, float]:
        """The metrics over some rows of the last evaluation.

        Args:
            rows: bool ``[rows]``; none True gives an empty result.
        """
        if not rows.any():
            return {}
        subset = DataStruct()
        for key in ROW_RESOURCES:
            if key in self.collected:
                subset.set(key, self.collected.get(key)[rows])
        for key in DATA_RESOURCES:
            if key in self.collected:
                subset.set(key, self.collected.get(key))
        return super().evaluate(subset)


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation of both stages.

    Attributes:
        retriever, llamarec: metrics over all rows.
        retriever_on_retrieved, llamarec_on_retrieved: metrics over the valid retrieval subset, the
            rows whose target is among the candidates (paper, Table 3).
        n_rows, n_retrieved: rows of all, and of the subset.
        n_candidates: candidates a row, K.
        masks_seen: whether items already seen are excluded, for both alike.
        retriever_name: name of the retriever.
    """

    retriever: Mapping[str, float]
    llamarec: Mapping[str, float]
    retriever_on_retrieved: Mapping[str, float]
    llamarec_on_retrieved: Mapping[str, float]
    n_rows: int
    n_retrieved: int
    n_candidates: int
    masks_seen: bool
    retriever_name: str

    @property
    def ceiling(self) -> float:
        """The retriever's Recall at K, which no order of the candidates can exceed."""
        return self.n_retrieved / self.n_rows if self.n_rows else 0.0

    def table(self) -> str:
        """The report as text."""
        names = list(self.llamarec)
        rows: Sequence[tuple[str, int, Mapping[str, float]]] = (
            (self.retriever_name, self.n_rows, self.retriever),
            ("LlamaRec", self.n_rows, self.llamarec),
            (f"{self.retriever_name}, retrieved", self.n_retrieved, self.retriever_on_retrieved),
            ("LlamaRec, retrieved", self.n_retrieved, self.llamarec_on_retrieved),
        )
        body = [
            [name, count, *(f"{metrics[m]:.4f}" if m in metrics else "-" for m in names)]
            for name, count, metrics in rows
        ]
        seen = "items already seen are masked" if self.masks_seen else "seen items are not masked"
        return (
            tabulate(body, headers=["", "rows", *names], tablefmt="github", disable_numparse=True)
            + f"\n{self.n_candidates} candidates a row; {seen}, for both stages alike. "
            f'"retrieved": the {self.n_retrieved} of {self.n_rows} rows whose target is among the '
            f"candidates (ceiling: Recall@{self.n_candidates} = {self.ceiling:.4f})."
        )


def only_rank_metrics(metrics: Sequence[str]) -> bool:
    """Whether every metric depends on the target's rank alone."""
    return all(metric.lower() in RANK_METRICS for metric in metrics)
