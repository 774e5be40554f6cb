"""RecBole's metrics of each row, from the rank of its target."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict


def is_rank_metric(metric: str) -> bool:
    """Whether a metric depends on nothing but where the targets stand in each row.

    Coverage, diversity and popularity metrics depend on every recommended item.
    """
    metric_class = metrics_dict.get(metric.lower().split("@")[0])
    return metric_class is not None and list(metric_class.metric_need) == ["rec.topk"]


def has_cutoffs(metric: str) -> bool:
    """Whether a ranking metric is taken at each of ``topk``, as all but GAUC are."""
    return bool({"rec.topk", "rec.items"}.intersection(metrics_dict[metric.lower()].metric_need))


def only_rank_metrics(metrics: Sequence[str]) -> bool:
    """Whether all of them are rank metrics."""
    return all(map(is_rank_metric, metrics))


def as_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """RecBole's metrics, of which some are NumPy's scalars, GAUC of float32."""
    return {name: float(value) for name, value in metrics.items()}


def require_items(topk: Sequence[int], n_items: int) -> None:
    """Check before a training what RecBole fails on at its first validation.

    Args:
        topk: the key.
        n_items: of the catalogue, without the padding item.

    Raises:
        ValueError: there are fewer items than a cut-off asks for.
    """
    if topk and max(topk) > n_items:
        raise ValueError(
            f"topk: {topk} asks for the first {max(topk)} items, but the data set has {n_items}. "
            f"Use cut-offs of at most {n_items}."
        )


def metrics_of_ranks(ranks: np.ndarray, config: Any) -> pd.DataFrame:
    """The rank metrics of rows that have one target each, by RecBole's own metric classes.

    Args:
        ranks: the target's rank in each row, from 1, ``[rows]``.
        config: RecBole's ``Config``, or a mapping with its ``metrics``, ``topk`` and
            ``metric_decimal_place``.

    Returns:
        a column ``metric@k`` for each rank metric and cut-off, float64 ``[rows]``.
    """
    topk = config["topk"]
    longest = max(topk)
    hits = torch.zeros(len(ranks), longest + 1, dtype=torch.int64)  # [rows, longest + 1]
    inside = ranks <= longest
    hits[np.flatnonzero(inside), ranks[inside] - 1] = 1
    hits[:, longest] = 1  # RecBole's last column: how many targets a row has
    data = DataStruct()
    data.set("rec.topk", hits)
    columns: dict[str, np.ndarray] = {}
    for name in filter(is_rank_metric, config["metrics"]):
        metric = metrics_dict[name.lower()](config)
        given = metric.used_info(data)[: len(inspect.signature(metric.metric_info).parameters)]
        values = metric.metric_info(*given)  # [rows, longest]
        columns |= {f"{name.lower()}@{k}": values[:, k - 1].astype(np.float64) for k in topk}
    return pd.DataFrame(columns)
