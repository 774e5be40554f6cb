"""The result table and the users' table, from records without a model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llamarec.data.seen import CHOSEN_BEFORE, SeenItems
from recbole_llamarec.evaluation.passes import PassRecords
from recbole_llamarec.evaluation.statistics import paired_test
from recbole_llamarec.evaluation.table import (
    EvaluationReport,
    StageResult,
    add_choices,
    evaluation_report,
    stage_means,
    user_table,
)
from recbole_llamarec.scoring.fusion import Fusion, FusionStep, Stage

CONFIG = {"metrics": ["Recall", "MRR", "ItemCoverage"], "topk": [2], "metric_decimal_place": 4}
DATASET = SimpleNamespace(
    uid_field="user_id",
    iid_field="item_id",
    item_id_list_field="item_id_list",
    id2token=lambda field, ids: [f"{field[0]}{i}" for i in ids],
    chosen=SeenItems.from_histories([[], *[[3, 5]] * 6]),
    inter_feat=Interaction(
        {
            "user_id": torch.arange(1, 7),
            "item_id": torch.tensor([5, 5, 5, 5, 3, 3]),  # the last two have been chosen before
            "item_id_list": torch.tensor([[3]] * 4 + [[5]] * 2),
            CHOSEN_BEFORE: torch.tensor([1] * 4 + [2] * 2),
        }
    ),
)
N_ROWS, K, N_ITEMS = 6, 4, 30


@pytest.fixture
def records() -> PassRecords:
    """Six rows; the target of the last one is no candidate, and it was not scored."""
    generator = np.random.default_rng(0)
    items = np.stack([generator.permutation(N_ITEMS - 1)[:K] + 1 for _ in range(N_ROWS - 1)])
    columns = np.array([0, 1, 2, 3, 3])
    rows = {
        "users": np.arange(1, N_ROWS + 1),
        "targets": np.append(items[np.arange(5), columns], 29),
        "ranks": np.append(columns + 1, 20),
        "lengths": np.array([3, 1, 4, 1, 5, 9]),
        "is_ranked": np.array([True] * 5 + [False]),
    }
    retriever = np.log(np.tile([0.4, 0.3, 0.2, 0.1], (5, 1))).astype(np.float32)
    evidence = np.tile([0.0, 0.0, 3.0, 0.0], (5, 1)).astype(np.float32)
    letters = np.tile([0.0, 0.0, 0.0, 9.0], (5, 1)).astype(np.float32)
    ranked = {"items": items, "retriever": retriever, "best_first": items * 0}
    ranked["masked"] = np.zeros((5, K), dtype=bool)
    return PassRecords(rows, ranked | {"score:evidence": evidence, "score:letters": letters})


STEPS = (
    FusionStep("evidence", 0.2, 0.001, {"evidence": 1.0}, 1.0),
    FusionStep("letters", 0.1, 0.01, {"evidence": 0.5, "letters": 1.0}, 2.0),
)
FITTED = Fusion({"evidence": 0.5, "letters": 1.0}, steps=STEPS, n_rows=5)


def report_of(
    records: PassRecords, fusion: Fusion, names=("evidence", "letters"), scorers=None, **settings
):
    """The report of a model that has nothing but what a report reads."""
    keys = {"retriever": "SASRec", "rerank_candidates": K, "rerank_mask_seen": True} | settings
    model = SimpleNamespace(
        settings=SimpleNamespace(**keys),
        scorer_names=list(names),
        scorers=scorers or {},
        fusion=fusion,
        item_counts=np.arange(N_ITEMS) * 10,
    )
    metrics = {"recall@2": 0.3333, "mrr@2": 0.25, "itemcoverage@2": 0.5}
    final = {"recall@2": 0.5, "mrr@2": 0.4, "itemcoverage@2": 0.6}
    return evaluation_report(model, records, DATASET, CONFIG, metrics, final)


def test_the_tables_rows_are_the_retriever_the_fused_each_alone_and_the_final_order(records):
    report = report_of(records, FITTED)
    names = [
        *("SASRec", "SASRec + evidence", "SASRec + letters", "SASRec + evidence + letters"),
        *("evidence", "letters", "final: SASRec + evidence + letters"),
    ]
    assert [stage.name for stage in report.stages] == names
    first, second = report.table().split("\n\n")
    for text in (first, second):
        assert [line.split("|")[1].strip() for line in text.splitlines()[2:9]] == names
    assert report.retriever.name == "SASRec" and report.final is report.stages[-1]


def test_recboles_own_metrics_stand_in_the_first_and_the_last_row_alone(records):
    report = report_of(records, FITTED)
    assert report.retriever.metrics["itemcoverage@2"] == 0.5
    assert report.final.metrics["itemcoverage@2"] == 0.6
    assert "itemcoverage@2" not in report.stages[1].metrics
    lines = report.table().splitlines()
    assert lines[0].split("|")[1].strip() == "all rows, 6"
    assert lines[2].split("|")[2:5] == [" 0.3333     ", " 0.2500  ", " 0.5000           "]
    assert lines[3].split("|")[4].strip() == "-"


def test_the_second_table_is_of_the_retrieved_rows(records):
    report = report_of(records, FITTED)
    assert (report.n_rows, report.n_retrieved) == (6, 5)
    assert report.ceiling == pytest.approx(5 / 6)
    retrieved = {stage.name: stage.metrics for stage in report.retrieved_stages()}
    assert retrieved["SASRec"] == {"recall@2": pytest.approx(2 / 5), "mrr@2": pytest.approx(0.3)}
    assert retrieved["letters"]["recall@2"] == pytest.approx(3 / 5)
    assert "retrieved rows, 5" in report.table()


def test_without_a_scorer_there_is_one_row(records):
    bare = PassRecords(
        records.rows, {k: v for k, v in records.ranked.items() if not k.startswith("score:")}
    )
    report = report_of(bare, Fusion({}), names=())
    assert [stage.name for stage in report.stages] == ["SASRec"]
    assert report.final is report.retriever and "Weights beside the retriever: none." in (
        report.caption()
    )
    assert report.compared("recall@2") == []


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (True, "items already seen are masked"),
        (False, "seen items are not masked"),
        ("window", "items of the retriever's window are masked"),
    ],
)
def test_the_caption_says_what_the_tables_are_of(records, masks, words):
    caption = report_of(records, FITTED, rerank_mask_seen=masks).caption()
    assert words in caption and "4 candidates a row" in caption
    assert "evidence 0.5, letters 1" in caption
    assert "in 5 of 6 rows (ceiling: Recall@4 = 0.8333)" in caption


def test_the_caption_says_where_the_retriever_does_not_count(records):
    alone = Fusion({"letters": 1.0}, with_retriever=False)
    assert "Weights without the retriever: letters 1." in report_of(records, alone).caption()


@pytest.mark.parametrize(
    ("scorer", "remedy"),
    [
        (SimpleNamespace(is_tuned=True), "Tune it on more samples"),
        (SimpleNamespace(is_tuned=False), "Leave it out"),  # its adapter is at hand, or a server's
        (SimpleNamespace(), "Leave it out"),  # evidence
    ],
)
def test_more_samples_are_asked_for_where_an_adapter_is_tuned(records, scorer, remedy):
    report = report_of(records, FITTED, scorers={"letters": scorer})
    assert report.warnings("recall@2", bigger=True)[1:] == []  # the final order is better
    (worse,) = report.warnings("recall@2", bigger=False)[1:]
    assert "worse than the retriever's (0.3333)" in worse and remedy in worse


def test_users_have_the_ranks_and_metrics_of_each_stage(records):
    stages = [Stage("SASRec", {}), Stage("letters", {"letters": 1.0}, with_retriever=False)]
    users = user_table(records, stages, DATASET, CONFIG)
    assert list(users) == [
        *("user_id", "item_id", "rank:SASRec", "recall@2:SASRec", "mrr@2:SASRec"),
        *("rank:letters", "recall@2:letters", "mrr@2:letters"),
    ]
    assert users["user_id"].tolist() == [f"u{i}" for i in range(1, 7)]
    assert users["rank:SASRec"].tolist() == [1, 2, 3, 4, 4, 20]
    assert users["rank:letters"].tolist() == [2, 3, 4, 1, 1, 20]
    assert users["mrr@2:letters"].tolist() == [0.5, 0, 0, 1, 1, 0]


def test_users_have_each_scorers_first_choice_where_it_was_asked(records):
    users = add_choices(pd.DataFrame({"a": range(6)}), records, np.arange(N_ITEMS) * 10)
    assert list(users) == [
        *("a", "target_count", "first:evidence", "first_count:evidence"),
        *("first:letters", "first_count:letters"),
    ]
    assert users["target_count"].tolist() == (records.rows["targets"] * 10).tolist()
    assert users["first:evidence"].tolist()[:5] == [2] * 5
    assert users["first_count:letters"].tolist()[:5] == (
        (records.ranked["items"][:, 3] * 10).tolist()
    )
    assert users.iloc[5, 2:].isna().all()


def test_a_report_has_histories_beside_the_users(records):
    users = report_of(records, FITTED).users
    assert users["history_length"].tolist() == [3, 1, 4, 1, 5, 9]
    assert {"rank:final: SASRec + evidence + letters", "first:letters"} <= set(users)


def test_a_fused_stage_is_compared_with_what_it_joins_and_the_final_one_with_the_retriever(records):
    lines = report_of(records, FITTED).compared("recall@2")
    assert [line.split(": recall@2")[0] for line in lines] == [
        "SASRec + evidence against SASRec",
        "SASRec + letters against SASRec",
        "SASRec + evidence + letters against SASRec + evidence",
        "final: SASRec + evidence + letters against SASRec",
    ]
    assert all("(paired t-test, 6 rows)" in line for line in lines)
    assert report_of(records, FITTED).compared("itemcoverage@2") == []  # not of single rows


def test_the_table_of_an_evaluation_without_any_retrieved_target():
    rows = {
        "users": np.arange(7),
        "targets": np.full(7, 9),
        "ranks": np.full(7, 21),
        "lengths": np.full(7, 3),
        "is_ranked": np.zeros(7, dtype=bool),
    }
    empty = np.empty((0, K), dtype=np.float32)
    ranked = {"items": empty.astype(int), "retriever": empty, "score:letters": empty}
    ranked["masked"] = empty.astype(bool)
    report = report_of(
        PassRecords(rows, ranked), Fusion({"letters": 0.5}), ["letters"], rerank_mask_seen=False
    )
    assert report.ceiling == 0.0
    assert report.retrieved_stages()[0].metrics == {}
    text = report.table()
    assert "retrieved rows, 0" in text and "0 of 7 rows" in text
    assert text.split("\n\n")[1].splitlines()[2].split("|")[2].strip() == "-"
    (line,) = report.compared("recall@2")
    assert line.endswith("+0.0000, p = 1 (paired t-test, 7 rows)")


def test_a_report_of_no_rows_has_no_ceiling():
    users = pd.DataFrame({"rank:SASRec": []})
    stages = [StageResult("SASRec", {})]
    report = EvaluationReport(stages, {}, users, n_candidates=5, masks_seen=True)
    assert (report.n_rows, report.ceiling) == (0, 0.0)
    assert stage_means(users, "SASRec") == {}


def test_the_means_of_a_scorers_stage_are_of_its_metrics_alone():
    columns = {"rank:letters": [1, 2], "ndcg@10:letters": [1.0, 0.5], "first:letters": [0, 3]}
    assert stage_means(pd.DataFrame(columns), "letters") == {"ndcg@10": 0.75}


def test_paired_test_over_users():
    generator = np.random.default_rng(0)
    before = generator.random(200)
    difference, p_value = paired_test(before, before + 0.1 + 0.01 * generator.random(200))
    assert difference == pytest.approx(0.105, abs=0.002) and p_value < 1e-6
    assert paired_test(before, generator.permutation(before))[1] > 0.05
    assert paired_test(before, before) == (0.0, 1.0)
