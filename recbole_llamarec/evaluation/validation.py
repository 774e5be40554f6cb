"""Fitting the fusion on validation rows, and what each stage comes to on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from recbole_llamarec.data.seen import hidden_targets, hidden_warning
from recbole_llamarec.evaluation.metrics import metrics_of_ranks
from recbole_llamarec.evaluation.passes import PassRecords
from recbole_llamarec.scoring.fusion import Fusion, fit_fusion

logger = logging.getLogger(__name__)


def fit_on_validation(
    records: PassRecords, scorers: Sequence[str], retriever_name: str, config: Any
) -> tuple[Fusion, dict[str, dict[str, float]]]:
    """Fit the weights, and evaluate every stage on the same rows; both are logged.

    Args:
        records: of a pass over validation rows with every scorer, of all processes.
        scorers: names, in the order in which they are tested.
        retriever_name: of the first stage.
        config: RecBole's ``Config``: metrics, cut-offs and ``valid_metric``.

    Returns:
        the fusion, and the rank metrics of each stage by its name, the final order's last.
    """
    opinions = {name: records.opinions[name] for name in scorers}
    ranked = records.ranked
    fusion = fit_fusion(ranked["retriever"], opinions, records.target_columns, ranked["masked"])
    results = {}
    for stage in fusion.stages(retriever_name, scorers):
        means = metrics_of_ranks(records.ranks_by(stage), config).mean()
        results[stage.name] = {str(metric): float(value) for metric, value in means.items()}
    for line in fusion.summary().splitlines():
        logger.info(line)
    metric, n_rows = config["valid_metric"].lower(), len(records.rows["ranks"])
    values = [f"{name} {of[metric]:.4f}" for name, of in results.items() if metric in of]
    logger.info("%s on %d validation rows: %s", metric, n_rows, "; ".join(values))
    return fusion, results


def warn_of_hidden_targets(valid_data: Any, rule: bool | str) -> None:
    """Say before the training how many validation targets the mask hides, if any.

    Args:
        valid_data: RecBole's loader, or ``None``.
        rule: the key ``rerank_mask_seen``.
    """
    if valid_data:
        n_hidden, n_rows = hidden_targets(valid_data.dataset, rule), len(valid_data.dataset)
        if warning := hidden_warning(n_hidden, n_rows, "validation"):
            logger.warning(warning)
