"""The result table: one row a stage, over all rows and over those whose target was retrieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_llamarec.data.seen import hidden_targets, hidden_warning
from recbole_llamarec.evaluation.metrics import as_floats, metrics_of_ranks
from recbole_llamarec.evaluation.passes import PassRecords
from recbole_llamarec.evaluation.statistics import paired_test
from recbole_llamarec.scoring.fusion import Stage

RANK = "rank"  # the users' table has a column rank:STAGE and, for each metric, METRIC:STAGE


@dataclass(frozen=True)
class StageResult:
    """One row of a table.

    Attributes:
        name: of the stage.
        metrics: by RecBole's names; those that a stage has not been evaluated in are missing.
    """

    name: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvaluationReport:
    """The result of an evaluation.

    Attributes:
        stages: the retriever; each scorer beside it, then cumulated; each alone; the final order.
        weights: of each scorer in the final order.
        users: one line each row: user, target, and its rank and metrics in each stage.
        n_candidates: K.
        masks_seen: the key ``rerank_mask_seen``.
        n_hidden: rows whose target has been seen before, and is masked with all that has.
        with_retriever: whether the retriever counts in the final order.
        is_tuned: whether the run tunes a language model.
    """

    stages: list[StageResult]
    weights: Mapping[str, float]
    users: pd.DataFrame
    n_candidates: int
    masks_seen: bool | str
    n_hidden: int = 0
    with_retriever: bool = True
    is_tuned: bool = False

    @property
    def retriever(self) -> StageResult:
        """The first stage alone."""
        return self.stages[0]

    @property
    def final(self) -> StageResult:
        """The final order; the retriever's where there is no scorer."""
        return self.stages[-1]

    @property
    def n_rows(self) -> int:
        """Rows evaluated."""
        return len(self.users)

    @property
    def is_retrieved(self) -> pd.Series:
        """Whether each row's target is among the candidates."""
        return self.users[f"{RANK}:{self.retriever.name}"] <= self.n_candidates

    @property
    def n_retrieved(self) -> int:
        """Rows whose target is among the candidates."""
        return int(self.is_retrieved.sum())

    @property
    def ceiling(self) -> float:
        """The retriever's Recall at K, which no order of the candidates can exceed."""
        return self.n_retrieved / self.n_rows if self.n_rows else 0.0

    def retrieved_stages(self) -> list[StageResult]:
        """The rank metrics of each stage over the rows whose target is among the candidates."""
        retrieved = self.users[self.is_retrieved]
        return [StageResult(s.name, stage_means(retrieved, s.name)) for s in self.stages]

    def caption(self) -> str:
        """What the tables are of."""
        seen = {
            True: "items already seen are masked",
            False: "seen items are not masked",
            "window": "items of the retriever's window are masked",
        }[self.masks_seen]
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights.items())
        return (
            f"{self.n_candidates} candidates a row; {seen}, for all stages alike. Weights "
            f"{'beside' if self.with_retriever else 'without'} the retriever: {weights or 'none'}. "
            f"The target is among the candidates in {self.n_retrieved} of {self.n_rows} rows "
            f"(ceiling: Recall@{self.n_candidates} = {self.ceiling:.4f})."
        )

    def table(self) -> str:
        """Both tables as text: over all rows, and over the retrieved ones."""
        names = list(self.retriever.metrics)
        title = f"retrieved rows, {self.n_retrieved}"
        return "\n".join(
            [
                _as_text(f"all rows, {self.n_rows}", self.stages, names),
                "",
                _as_text(title, self.retrieved_stages(), names),
                self.caption(),
            ]
        )

    def warnings(self, metric: str, bigger: bool) -> list[str]:
        """What to say where targets are masked, or the final order is worse than the retriever's.

        Args:
            metric: that decides.
            bigger: whether a greater value is the better one.
        """
        hidden = hidden_warning(self.n_hidden, self.n_rows, "test")
        return [warning for warning in (hidden, self._worse(metric, bigger)) if warning]

    def _worse(self, metric: str, bigger: bool) -> str | None:
        before, after = self.retriever.metrics[metric], self.final.metrics[metric]
        if (after >= before) if bigger else (after <= before):
            return None
        remedy = "Leave it out (ranking_method: none, evidence_items: 0, scorers: ~)."
        if self.is_tuned:
            remedy = "Tune it on more samples (train_max_samples), or take a larger model "
            remedy += "(llm_name_or_path)."
        return (
            f"The final order's {metric} ({after}) is worse than the retriever's ({before}): what "
            f"ranks its candidates does not earn the compute. {remedy}"
        )

    def lines(self, metric: str) -> list[str]:
        """What a run logs: the tables, and the paired tests in ``metric``."""
        return ["Result\n" + self.table(), *self.compared(metric)]

    def compared(self, metric: str) -> list[str]:
        """Paired tests over users in one rank metric, a line each.

        Each fused stage is compared with what its last scorer joins, the final one with the first.
        """
        names = [stage.name for stage in self.stages]
        fused = [name for name in names if name.startswith(f"{names[0]} + ")]
        pairs = []
        for i, name in enumerate(fused):
            joined = [own for own in (names[0], *fused[:i]) if name.startswith(f"{own} + ")]
            pairs.append((max(joined, key=len), name))
        if len(fused) != 1:  # else the final order is that of the one stage
            pairs.append((names[0], names[-1]))
        lines = []
        for before, after in dict.fromkeys(pairs):
            if before != after and f"{metric}:{after}" in self.users:
                columns = self.users[f"{metric}:{before}"], self.users[f"{metric}:{after}"]
                difference, p_value = paired_test(*columns)
                change = f"{metric} {difference:+.4f}, p = {p_value:.2g}"
                lines.append(
                    f"{after} against {before}: {change} (paired t-test, {self.n_rows} rows)"
                )
        return lines


@dataclass(frozen=True)
class TestedRun:
    """A run that has been tested, for those who write about it (``LlamaRecTrainer.after_test``).

    Attributes:
        checkpoint: of the run; its users' table lies beside it.
        trainer: with model, configuration and journal.
        report: of the test.
        records: of the pass over all stages, of this process.
        loader: test data of this process.
    """

    checkpoint: Path
    trainer: Any
    report: EvaluationReport
    records: PassRecords
    loader: Any


def _as_text(title: str, stages: Sequence[StageResult], metrics: Sequence[str]) -> str:
    body = [
        [s.name, *(f"{s.metrics[m]:.4f}" if m in s.metrics else "-" for m in metrics)]
        for s in stages
    ]
    headers = [title, *metrics]
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True)


def stage_means(users: pd.DataFrame, stage: str) -> dict[str, float]:
    """Means of a stage's metrics over a table of users; empty where there is no row."""
    suffix = f":{stage}"
    columns = [c for c in users if c.endswith(suffix) and "@" in c.removesuffix(suffix)]
    if users.empty:
        return {}
    return {c.removesuffix(suffix): float(users[c].mean()) for c in columns}


def user_table(
    records: PassRecords, stages: Sequence[Stage], dataset: Any, config: Any
) -> pd.DataFrame:
    """What each row's target came to in each stage.

    Args:
        records: of the pass, of all processes.
        stages: the orders of the candidates.
        dataset: knows the tokens of users and items.
        config: RecBole's ``Config``: metrics and cut-offs.

    Returns:
        columns ``user_id``, ``item_id``, and for each stage ``rank:STAGE`` and
        ``metric@k:STAGE`` of the metrics that depend on the rank alone.
    """
    rows = records.rows
    tokens = {
        "user_id": dataset.id2token(dataset.uid_field, rows["users"]),
        "item_id": dataset.id2token(dataset.iid_field, rows["targets"]),
    }
    parts = [pd.DataFrame(tokens)]
    for stage in stages:
        ranks = records.ranks_by(stage)
        parts.append(pd.DataFrame({f"{RANK}:{stage.name}": ranks}))
        parts.append(metrics_of_ranks(ranks, config).add_suffix(f":{stage.name}"))
    return pd.concat(parts, axis=1)


def add_choices(users: pd.DataFrame, records: PassRecords, item_counts: np.ndarray) -> pd.DataFrame:
    """Add what each scorer chose first, for the analysis of its biases.

    Args:
        users: of :func:`user_table`.
        records: of the same pass.
        item_counts: how often each item is a target in training, ``[n_items]``.

    Returns:
        ``users`` with ``target_count``, and for each scorer ``first:NAME``, the column of its first
        choice among the candidates as the retriever orders and a prompt shows them, counted from 0,
        and ``first_count:NAME``, how often that item is a target in training.
    """
    ranked = records.rows["is_ranked"]
    columns: dict[str, Any] = {"target_count": item_counts[records.rows["targets"]]}
    for name, scores in records.opinions.items():
        first = scores.argmax(1)  # [R]
        chosen = np.take_along_axis(records.ranked["items"], first[:, None], 1)[:, 0]  # [R]
        first_choices = {f"first:{name}": first, f"first_count:{name}": item_counts[chosen]}
        for column, values in first_choices.items():
            columns[column] = np.full(len(ranked), np.nan)
            columns[column][ranked] = values
    return pd.concat([users, pd.DataFrame(columns)], axis=1)


def evaluation_report(
    model: Any,
    records: PassRecords,
    dataset: Any,
    config: Any,
    retriever: Mapping[str, float],
    final: Mapping[str, float],
) -> EvaluationReport:
    """The result of an evaluation.

    Args:
        model: the ``LlamaRec`` that was evaluated.
        records: of the pass over all stages, of all processes.
        dataset: the evaluation part, which knows the tokens.
        config: RecBole's ``Config``.
        retriever, final: RecBole's own metrics of the retriever alone and of the final order.
    """
    settings = model.settings
    scorers = [name for name in model.scorer_names if name in records.opinions]
    stages = model.fusion.stages(settings.retriever, scorers)
    users = user_table(records, stages, dataset, config)
    users["history_length"] = records.rows["lengths"]
    results = [StageResult(stage.name, stage_means(users, stage.name)) for stage in stages]
    results[0] = StageResult(stages[0].name, as_floats(retriever))
    if scorers:
        results[-1] = StageResult(stages[-1].name, as_floats(final))
    return EvaluationReport(
        stages=results,
        weights=model.fusion.weights or {},
        users=add_choices(users, records, model.item_counts),
        n_candidates=settings.rerank_candidates,
        masks_seen=settings.rerank_mask_seen,
        n_hidden=hidden_targets(dataset, settings.rerank_mask_seen),
        with_retriever=model.fusion.with_retriever,
        is_tuned=any(getattr(scorer, "is_tuned", False) for scorer in model.scorers.values()),
    )
