"""The result table and the subset metrics, without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.evaluator.collector import DataStruct

from recbole_llamarec.evaluation import (
    EvaluationReport,
    RecordingEvaluator,
    only_rank_metrics,
    paired_test,
    rank_metrics,
    user_table,
)

CONFIG = {
    "metrics": ["Recall", "MRR", "ItemCoverage"],
    "topk": [2],
    "metric_decimal_place": 4,
}


@pytest.fixture
def evaluator() -> RecordingEvaluator:
    """Evaluated rows: a hit at rank 1, a hit at rank 2, a miss."""
    evaluator = RecordingEvaluator(CONFIG)
    struct = DataStruct()
    struct.set("rec.topk", torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]]))
    struct.set("rec.items", torch.tensor([[1, 2], [3, 4], [1, 3]]))
    struct.set("data.num_items", 9)
    assert evaluator.evaluate(struct)["recall@2"] == pytest.approx(0.6667)
    return evaluator


def test_metrics_over_some_rows(evaluator):
    hits = evaluator.evaluate_rows(torch.tensor([True, True, False]))
    assert hits["recall@2"] == 1.0 and hits["mrr@2"] == 0.75
    assert hits["itemcoverage@2"] == pytest.approx(4 / 9, abs=1e-4)  # items 1, 2, 3, 4
    second = evaluator.evaluate_rows(torch.tensor([False, True, False]))
    assert second["mrr@2"] == 0.5
    assert evaluator.evaluate_rows(torch.zeros(3, dtype=torch.bool)) == {}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"], True),
        (["NDCG", "ItemCoverage"], False),
        (["GAUC"], False),
        (["AveragePopularity"], False),
        (["ShannonEntropy"], False),
        (["TailPercentage"], False),
    ],
)
def test_which_metrics_allow_rows_to_be_skipped(metrics, expected):
    assert only_rank_metrics(metrics) is expected


def test_the_table_of_an_evaluation_without_any_retrieved_target():
    metrics = {"recall@10": 0.0}
    ranks = np.full(7, 21)
    report = EvaluationReport(
        retriever=metrics,
        llamarec=metrics,
        retriever_on_retrieved={},
        llamarec_on_retrieved={},
        users=user_table(
            list("abcdefg"), ["x"] * 7, {"retriever": ranks, "llamarec": ranks}, ["Recall"], [10]
        ),
        n_candidates=20,
        masks_seen=False,
        retriever_name="SASRec",
    )
    assert report.ceiling == 0.0
    lines = report.table().splitlines()
    assert lines[2].split("|")[1:4] == [" SASRec              ", " 7      ", " 0.0000      "]
    assert lines[4].split("|")[3].strip() == "-"
    assert "seen items are not masked" in report.table() and "0 of 7 rows" in report.table()
    assert report.compared("recall@10").endswith("+0.0000, p = 1 (paired t-test over 7 rows)")


def test_metrics_of_each_user_are_recboles():
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
    expected = RecordingEvaluator(settings).evaluate(struct)
    found = rank_metrics(ranks, [*metrics, "ItemCoverage"], topk)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].mean() == pytest.approx(value, abs=1e-6)


def test_paired_test_over_users():
    generator = np.random.default_rng(0)
    before = generator.random(200)
    difference, p_value = paired_test(before, before + 0.1 + 0.01 * generator.random(200))
    assert difference == pytest.approx(0.105, abs=0.002) and p_value < 1e-6
    assert paired_test(before, generator.permutation(before))[1] > 0.05
    assert paired_test(before, before) == (0.0, 1.0)
