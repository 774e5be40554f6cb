"""The result: both stages side by side, over all rows, where retrieval succeeded, and by user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct
from scipy.stats import ttest_rel
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


def best_first_of(scores: torch.Tensor) -> torch.Tensor:
    """Columns of each row from the highest score to the lowest; equal ones keep their order."""
    return torch.argsort(scores, dim=1, descending=True, stable=True)


@dataclass(frozen=True)
class CandidateScores:
    """What is known of the candidates of some rows, by the retriever and beyond it.

    Attributes:
        retriever: the retriever's scores, ``[R, K]`` on the CPU, as all of them.
        evidence: what counts of other users' choices say; ``None`` where they are not fused.
        ranker: the ranker's log-probabilities; ``None`` where it is not asked.
    """

    retriever: torch.Tensor
    evidence: torch.Tensor | None = None
    ranker: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[CandidateScores], n_candidates: int) -> CandidateScores:
        """Those of several batches, one behind the other."""
        if not parts:
            nothing = torch.empty(0, n_candidates)
            return cls(nothing, nothing, nothing)
        return cls(
            torch.cat([part.retriever for part in parts]),
            _joined([part.evidence for part in parts]),
            _joined([part.ranker for part in parts]),
        )

    def rows(self, places: Sequence[int]) -> CandidateScores:
        """Those of some rows."""
        return CandidateScores(
            self.retriever[places],
            None if self.evidence is None else self.evidence[places],
            None if self.ranker is None else self.ranker[places],
        )


def _joined(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Parts of equal kind, one behind the other; ``None`` where one is missing."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


@dataclass
class EvaluationPass:
    """How one pass over evaluation data is scored, and what it notes down, batch by batch.

    R rows of a batch are ranked; K candidates.

    Attributes:
        rerank: whether candidates are put into the final order.
        skip_misses: leave rows alone whose target is not among the candidates; no metric that
            depends on the target's rank alone can change there.
        show_progress: show a progress bar over prompts.
        targets: user and target item of every row, ``[rows, 2]``.
        ranks: the target's rank in every row's final order, from 1, ``[rows]``.
        evidence_ranks: the same by the retriever and the evidence, without the ranker.
        ranker_ranks: the same by the ranker alone, without fusion.
        is_ranked: whether each row's candidates were put into the final order, ``[rows]``.
        scores: of the candidates of those rows, in the retriever's order.
        places: the target's place among those candidates, ``[R]``; K where it is none of them.
        shown: how the rows that the ranker has read were shown, ``[R, 3]``: the place of its first
            choice, that of the target (K where it is no candidate), and the first choice itself.
        pools: their candidates, items in the retriever's order, ``[R, K]``.
        orders: columns of the candidates as the prompts show them, ``[R, K]``.
    """

    rerank: bool
    skip_misses: bool
    show_progress: bool
    targets: list[torch.Tensor] = field(default_factory=list)
    ranks: list[torch.Tensor] = field(default_factory=list)
    evidence_ranks: list[torch.Tensor] = field(default_factory=list)
    ranker_ranks: list[torch.Tensor] = field(default_factory=list)
    is_ranked: list[torch.Tensor] = field(default_factory=list)
    scores: list[CandidateScores] = field(default_factory=list)
    places: list[torch.Tensor] = field(default_factory=list)
    shown: list[torch.Tensor] = field(default_factory=list)
    pools: list[torch.Tensor] = field(default_factory=list)
    orders: list[torch.Tensor] = field(default_factory=list)

    def note(self, users: torch.Tensor, targets: torch.Tensor, order: torch.Tensor) -> None:
        """Note a batch as the retriever has ordered it.

        Args:
            users, targets: ``[rows]``.
            order: all items, ``[rows, n_items]``.
        """
        self.targets.append(torch.stack([users, targets], 1).cpu())
        ranks = 1 + (order == targets.unsqueeze(1)).int().argmax(1).cpu()  # [rows]
        self.ranks.append(ranks)
        self.evidence_ranks.append(ranks.clone())
        self.ranker_ranks.append(ranks.clone())
        self.is_ranked.append(torch.zeros(len(ranks), dtype=torch.bool))

    def note_ranked(
        self,
        rows: torch.Tensor,
        targets: torch.Tensor,
        candidates: torch.Tensor,
        shown: torch.Tensor,
        scores: CandidateScores,
        best_first: torch.Tensor,
        without_ranker: torch.Tensor,
    ) -> None:
        """Note how those rows of the batch came out that were ranked; all on the CPU.

        Args:
            rows: their places in the batch, ``[R]``.
            targets: ``[R]``.
            candidates: items in the retriever's order, ``[R, K]``.
            shown: columns of the candidates as the prompts show them, ``[R, K]``.
            scores: of the candidates.
            best_first: columns in the final order, ``[R, K]``.
            without_ranker: columns in the order that the candidates have without it, ``[R, K]``.
        """
        self.is_ranked[-1][rows] = True
        places = _place_of(candidates == targets.unsqueeze(1))  # [R]
        found = (places < candidates.shape[1]).nonzero().squeeze(1)
        orders = [(self.ranks[-1], best_first), (self.evidence_ranks[-1], without_ranker)]
        if scores.ranker is not None:
            orders.append((self.ranker_ranks[-1], best_first_of(scores.ranker)))
            first = scores.ranker.argmax(1, keepdim=True)  # [R, 1]
            columns = [
                _place_of(shown == first),
                _place_of(shown == places.unsqueeze(1)),
                candidates.gather(1, first).squeeze(1),
            ]
            self.shown.append(torch.stack(columns, 1))
        for ranks, order in orders:
            position = _place_of(order == places.unsqueeze(1))  # [R]
            ranks[rows[found]] = 1 + position[found]
        self.scores.append(scores)
        self.places.append(places)
        self.pools.append(candidates)
        self.orders.append(shown)


def _place_of(is_it: torch.Tensor) -> torch.Tensor:
    """Column of the True in each row of ``[R, K]``; K where there is none."""
    return torch.where(is_it.any(1), is_it.int().argmax(1), is_it.shape[1])


@dataclass(frozen=True)
class StageResult:
    """One line of a report.

    Attributes:
        key: ``retriever``, ``evidence`` (with the retriever and without the ranker), ``ranker``
            (alone, where it is fused) or ``llamarec``; with ``_retrieved`` behind it over the rows
            whose target was retrieved.
        name: for people.
        n_rows: rows that the metrics are over.
        metrics: by RecBole's names; none where there is no row.
    """

    key: str
    name: str
    n_rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation of both stages.

    Attributes:
        retriever, llamarec: metrics over all rows; ``llamarec`` is ``None`` without a ranker.
        retriever_on_retrieved, llamarec_on_retrieved: metrics over the valid retrieval subset, the
            rows whose target is among the candidates (paper, Table 3).
        users: one line for each row, from :func:`user_table`.
        n_candidates: candidates a row, K.
        masks_seen: whether items already seen are excluded, for both alike.
        retriever_name: name of the retriever.
    """

    retriever: Mapping[str, float]
    llamarec: Mapping[str, float] | None
    retriever_on_retrieved: Mapping[str, float]
    llamarec_on_retrieved: Mapping[str, float] | None
    users: pd.DataFrame
    n_candidates: int
    masks_seen: bool
    retriever_name: str

    @property
    def n_rows(self) -> int:
        """Rows evaluated."""
        return len(self.users)

    @property
    def n_retrieved(self) -> int:
        """Rows whose target is among the candidates."""
        return int((self.users["retriever_rank"] <= self.n_candidates).sum())

    @property
    def ranker(self) -> Mapping[str, float] | None:
        """Metrics of the ranker's order without the retriever's scores; ``None`` without fusion."""
        return self._means("ranker")

    @property
    def evidence(self) -> Mapping[str, float] | None:
        """Metrics of the retriever and the evidence without the ranker; ``None`` without it."""
        return self._means("evidence")

    def _means(self, stage: str) -> dict[str, float] | None:
        """Metrics of a stage that RecBole's evaluator does not see, from the table of users."""
        prefix = f"{stage}_"
        if prefix + "rank" not in self.users:
            return None
        columns = [name for name in self.users if name.startswith(prefix)]
        means = self.users[columns].drop(columns=prefix + "rank").mean()
        return {name.removeprefix(prefix): value for name, value in means.items()}

    @property
    def ceiling(self) -> float:
        """The retriever's Recall at K, which no order of the candidates can exceed."""
        return self.n_retrieved / self.n_rows if self.n_rows else 0.0

    def stages(self) -> list[StageResult]:
        """The lines of the table: each stage over all rows, then over the retrieved ones."""
        retrieved = f"{self.retriever_name}, retrieved"
        of_retriever, of_llamarec = self.retriever_on_retrieved, self.llamarec_on_retrieved
        lines = (
            ("retriever", self.retriever_name, self.n_rows, self.retriever),
            ("evidence", f"{self.retriever_name} and evidence", self.n_rows, self.evidence),
            ("ranker", "its ranker alone", self.n_rows, self.ranker),
            ("llamarec", "LlamaRec", self.n_rows, self.llamarec),
            ("retriever_retrieved", retrieved, self.n_retrieved, of_retriever),
            ("llamarec_retrieved", "LlamaRec, retrieved", self.n_retrieved, of_llamarec),
        )
        return [
            StageResult(key, name, n_rows, metrics)
            for key, name, n_rows, metrics in lines
            if metrics is not None
        ]

    def caption(self) -> str:
        """What the result table is of."""
        seen = "items already seen are masked" if self.masks_seen else "seen items are not masked"
        return (
            f"{self.n_candidates} candidates a row; {seen}, for both stages alike. "
            f'"retrieved": the {self.n_retrieved} of {self.n_rows} rows whose target is among the '
            f"candidates (ceiling: Recall@{self.n_candidates} = {self.ceiling:.4f})."
        )

    def table(self) -> str:
        """The report as text."""
        names = list(self.retriever)
        body = [
            [
                stage.name,
                stage.n_rows,
                *(f"{stage.metrics[m]:.4f}" if m in stage.metrics else "-" for m in names),
            ]
            for stage in self.stages()
        ]
        table = tabulate(
            body, headers=["", "rows", *names], tablefmt="github", disable_numparse=True
        )
        return f"{table}\n{self.caption()}"

    def compared(self, metric: str) -> str:
        """LlamaRec against its retriever in one metric, with a paired test over users, as text.

        With evidence in the fusion there is a second test, of what the ranker adds to both.
        """
        name = self.retriever_name
        others = {"retriever": name, "evidence": f"{name} and evidence"}
        found = []
        for stage, name in others.items():
            if f"{stage}_{metric}" in self.users:
                before, after = self.users[f"{stage}_{metric}"], self.users[f"llamarec_{metric}"]
                difference, p_value = paired_test(before, after)
                found.append(f"LlamaRec - {name}: {metric} {difference:+.4f}, p = {p_value:.2g}")
        return f"{'; '.join(found)} (paired t-test over {len(self.users)} rows)"


def rank_metrics(ranks: np.ndarray, metrics: Sequence[str], topk: Sequence[int]) -> pd.DataFrame:
    """RecBole's metrics of each row that has one target, from the target's rank.

    Args:
        ranks: the target's rank in each row, from 1, ``[rows]``.
        metrics: names of RecBole metrics; those that depend on other items too are left out.
        topk: the cut-offs.

    Returns:
        a column ``metric@k`` for each metric and cut-off, ``[rows]``.
    """
    gains = {
        "recall": np.ones_like(ranks, dtype=float),
        "hit": np.ones_like(ranks, dtype=float),
        "mrr": 1 / ranks,
        "map": 1 / ranks,
        "ndcg": 1 / np.log2(ranks + 1),
    }
    columns = {}
    for metric in map(str.lower, metrics):
        for k in topk:
            if metric in RANK_METRICS:
                gain = gains[metric] if metric in gains else 1 / k  # precision
                columns[f"{metric}@{k}"] = np.where(ranks <= k, gain, 0.0)
    return pd.DataFrame(columns)


def ranks_of(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rank of one candidate in each row, from 1; equal scores stand in the order of the columns.

    Args:
        scores: ``[rows, K]``, higher is better.
        places: the candidate's column, ``[rows]``.
    """
    order = best_first_of(torch.from_numpy(scores))  # [rows, K]
    return 1 + _place_of(order == torch.from_numpy(places)[:, None]).numpy()


def user_table(
    users: Sequence[str],
    items: Sequence[str],
    ranks: Mapping[str, np.ndarray],
    metrics: Sequence[str],
    topk: Sequence[int],
) -> pd.DataFrame:
    """What each user's target came to: its rank and the metrics, for each stage.

    Args:
        users, items: tokens of each row's user and target.
        ranks: the target's rank in each row, from 1, by stage (``retriever``, ``llamarec``; with
            fusion also ``ranker``, the ranker alone, and ``evidence``, all but the ranker).
        metrics, topk: as RecBole's configuration has them.

    Returns:
        columns ``user_id``, ``item_id``, and for each stage ``<stage>_rank`` and
        ``<stage>_<metric>@<k>``.
    """
    parts = [pd.DataFrame({"user_id": users, "item_id": items})]
    for stage, stage_ranks in ranks.items():
        parts.append(pd.DataFrame({f"{stage}_rank": stage_ranks}))
        parts.append(rank_metrics(stage_ranks, metrics, topk).add_prefix(f"{stage}_"))
    return pd.concat(parts, axis=1)


def paired_test(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean difference of two metrics of the same users, and the two-sided paired t-test's p.

    p is 1 where no user differs.
    """
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if not differences.any():
        return 0.0, 1.0
    return float(differences.mean()), float(ttest_rel(after, before).pvalue)


def only_rank_metrics(metrics: Sequence[str]) -> bool:
    """Whether every metric depends on the target's rank alone."""
    return all(metric.lower() in RANK_METRICS for metric in metrics)
