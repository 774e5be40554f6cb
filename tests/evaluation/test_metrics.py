"""Metrics of each row from its rank, against RecBole's own evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct

from recbole_llamarec.evaluation.metrics import metrics_of_ranks, only_rank_metrics


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"], True),
        (["recall", "ndcg"], True),
        (["NDCG", "ItemCoverage"], False),
        (["GAUC"], False),
        (["AveragePopularity"], False),
        (["ShannonEntropy"], False),
        (["TailPercentage"], False),
        (["NoSuchMetric"], False),
    ],
)
def test_which_metrics_allow_rows_to_be_skipped(metrics, expected):
    assert only_rank_metrics(metrics) is expected


def test_metrics_of_each_row_are_recboles():
    ranks = np.array([1, 2, 3, 4, 9, 1])
    metrics, topk = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"], [1, 3, 5]
    hits = torch.zeros(6, 6, dtype=torch.int)
    for row, rank in enumerate(ranks):
        if rank <= 5:
            hits[row, rank - 1] = 1
    hits[:, -1] = 1  # relevant items of the row
    struct = DataStruct()
    struct.set("rec.topk", hits)
    settings = {"metrics": metrics, "topk": topk, "metric_decimal_place": 6}
    expected = Evaluator(settings).evaluate(struct)
    values = metrics_of_ranks(ranks, {**settings, "metrics": [*metrics, "ItemCoverage"]})
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name].mean() == pytest.approx(value, abs=1e-6)


def test_metrics_of_no_rows_have_their_columns():
    settings = {"metrics": ["NDCG"], "topk": [3], "metric_decimal_place": 4}
    values = metrics_of_ranks(np.array([], dtype=np.int64), settings)
    assert list(values) == ["ndcg@3"] and len(values) == 0
