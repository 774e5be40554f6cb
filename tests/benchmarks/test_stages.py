"""The package's stages, fusion and table of users, as a suite's results keep them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from stages import compared_stages, fusion_summary, stage_names, users_table, validated_stages
from stages import tested_stages as stages_of_report  # pytest takes the name for a test

from recbole_llamarec.evaluation.table import EvaluationReport, StageResult
from recbole_llamarec.scoring.fusion import Fusion, fit_fusion

SCORERS = ("evidence", "verbalizer")
KEPT = ["LRURec", "LRURec + evidence", "LRURec + verbalizer", "evidence", "verbalizer"]
NAMED = [*KEPT, "final"]


@pytest.fixture(scope="module")
def fusion() -> Fusion:
    """Fitted on rows whose target evidence tells, and the ranker does not."""
    generator = np.random.default_rng(0)
    retriever, evidence, ranker = generator.normal(size=(3, 200, 5)).astype(np.float32)
    noise = generator.gumbel(size=evidence.shape)
    targets = (0.5 * retriever + evidence + noise).argmax(1)
    return fit_fusion(retriever, dict(zip(SCORERS, (evidence, ranker), strict=True)), targets)


@pytest.fixture
def stages(fusion) -> list[str]:
    """The package's names, with what is not in the results: all scorers fused, once more."""
    return [stage.name for stage in fusion.stages("LRURec", SCORERS)]


def test_the_names_are_the_packages_but_for_the_final_stage(stages):
    assert stages[-1] == "final: LRURec + evidence"
    assert "LRURec + evidence + verbalizer" in stages
    names = stage_names(stages)
    assert list(names) == [*KEPT, stages[-1]]
    assert list(names.values()) == NAMED


def test_one_scorer_beside_the_retriever_is_the_final_stage():
    fitted = Fusion.from_state({**Fusion({}).state(), "weights": {"verbalizer": 0.3}})
    for some in (["LRURec", "LRURec + verbalizer", "verbalizer"], ["LRURec", "verbalizer"]):
        names = stage_names([*some, fitted.final("LRURec").name])
        assert list(names.values()) == ["LRURec", "verbalizer", "final"]


def test_a_retriever_alone_is_the_final_stage():
    assert stage_names(["GRU4Rec"]) == {"GRU4Rec": "final"}
    (stage,) = Fusion({}).stages("GRU4Rec", [])
    users = pd.DataFrame({f"rank:{stage.name}": [1, 30], f"ndcg@5:{stage.name}": [1.0, 0.0]})
    report = EvaluationReport([StageResult(stage.name, {"ndcg@5": 0.5})], {}, users, 20, True)
    expected = {"test": {"final": {"ndcg@5": 0.5}}, "retrieved": {"final": {"ndcg@5": 1.0}}}
    assert stages_of_report(report) == expected


def test_a_report_is_read_in_all_its_stages(stages):
    users = pd.DataFrame({f"{value}:{name}": [1] for name in stages for value in ("rank", "mrr@5")})
    results = [StageResult(name, {"mrr@5": 0.1 * i}) for i, name in enumerate(stages)]
    report = EvaluationReport(results, {}, users, 20, True)
    read = stages_of_report(report)
    assert list(read["test"]) == NAMED
    assert read["test"]["final"] == results[-1].metrics
    assert read["retrieved"]["evidence"] == {"mrr@5": 1.0}
    validation = {name: {"mrr@5": 0.2} for name in stages}
    assert list(validated_stages(validation)) == list(read["test"])
    assert validated_stages({}) == {}


def test_the_users_table_has_ranks_and_metrics_of_stages_alone(stages):
    columns = {"user_id": ["7"], "item_id": ["i"], "history_length": [3], "target_count": [4]}
    columns |= {f"{value}:{name}": [1] for name in stages for value in ("rank", "ndcg@10")}
    columns |= {"first:verbalizer": [0.0], "first_count:verbalizer": [9.0]}
    table = users_table(pd.DataFrame(columns), stages)
    expected = [f"{value}:{name}" for name in NAMED for value in ("rank", "ndcg@10")]
    assert list(table) == ["user", *expected]


def test_the_fusion_keeps_what_the_ranker_adds_and_what_evidence_adds(fusion):
    summary = fusion_summary(fusion)
    first, last = fusion.steps
    assert summary["n_rows"] == 200
    assert (summary["gain"], summary["p_value"]) == (last.gain, last.p_value)
    assert summary["weight"] == 0 and last.p_value > 0.05  # its scores are noise
    evidence = summary["evidence"]
    assert evidence["gain"] == first.gain > 0
    assert evidence["weight"] == evidence["without_ranker"] == first.weights["evidence"] > 0


def test_weights_that_were_given_are_no_fit():
    assert fusion_summary(Fusion.from_setting(None, ["verbalizer"])) is None


def test_evidence_alone_leaves_the_rankers_weight_empty(fusion):
    alone = Fusion({"evidence": 1.0}, steps=fusion.steps[:1], n_rows=200)
    summary = fusion_summary(alone)
    assert (summary["weight"], summary["p_value"]) == (0.0, 1.0)
    assert summary["evidence"]["weight"] == 1.0


def test_the_final_stage_is_compared_with_its_parts_and_a_scorer_with_the_retriever():
    stages = ["LRURec", "LRURec + evidence", "likelihood", "final"]
    assert compared_stages(stages) == [
        ("final", "LRURec"),
        ("final", "LRURec + evidence"),
        ("LRURec + evidence", "LRURec"),
        ("likelihood", "LRURec"),
    ]
    assert compared_stages(["final"]) == []
