"""The weights of scorers beside the retriever, and the orders that a result table shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from recbole_llamarec.evaluation.passes import best_first_of
from recbole_llamarec.scoring.fusion import MOST, Fusion, FusionStep, Stage, fit_fusion


def choices(retriever_factor: float, scorer_factor: float, n_rows: int = 4000, seed: int = 0):
    """Scores of both, and targets drawn by a conditional logit over them."""
    generator = np.random.default_rng(seed)
    retriever = log_softmax(generator.normal(size=(n_rows, 8)), axis=1)
    scorer = log_softmax(generator.normal(size=(n_rows, 8)), axis=1)
    utility = retriever_factor * retriever + scorer_factor * scorer
    targets = (utility + generator.gumbel(size=utility.shape)).argmax(1)
    return retriever, {"ranker": scorer}, targets


def choices_of_three(factors: tuple[float, float, float], n_rows: int = 4000):
    """Scores of retriever, evidence and ranker, and targets drawn by a conditional logit."""
    generator = np.random.default_rng(1)
    retriever, evidence, ranker = generator.normal(size=(3, n_rows, 8))
    utility = sum(f * x for f, x in zip(factors, (retriever, evidence, ranker), strict=True))
    targets = (utility + generator.gumbel(size=utility.shape)).argmax(1)
    return retriever, {"evidence": evidence, "ranker": ranker}, targets


# --- fitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("retriever", "ranker"), [(1.0, 0.5), (0.5, 1.0), (2.0, 0.3)])
def test_the_weight_that_made_the_choices_is_fitted(retriever, ranker):
    fusion = fit_fusion(*choices(retriever, ranker))
    assert fusion.weights == {"ranker": pytest.approx(ranker / retriever, rel=0.15)}
    (step,) = fusion.steps
    assert step.p_value < 1e-6 and step.gain > 0.01
    assert fusion.is_fitted and fusion.changes_order and fusion.takes_part("ranker")


@pytest.mark.parametrize("seed", range(5))
def test_a_useless_scorer_gets_weight_0(seed):
    fusion = fit_fusion(*choices(1.0, 0.0, seed=seed))
    assert fusion.weights == {"ranker": 0}
    assert fusion.is_fitted and not fusion.changes_order and not fusion.takes_part("ranker")


def test_a_scorer_that_is_wrong_gets_weight_0():
    assert fit_fusion(*choices(1.0, -1.0)).weights == {"ranker": 0}


def test_a_useless_retriever_leaves_the_scorer_in_charge():
    assert fit_fusion(*choices(-0.2, 1.0)).weights == {"ranker": MOST}


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_masked_candidates_do_not_count(scale):
    """The fit is that of the open ones alone, whatever the scores of the others and their scale."""
    retriever, opinions, targets = choices(1.0, 0.5)
    retriever = scale * retriever
    alone = fit_fusion(retriever, opinions, targets)
    more = np.full((len(targets), 3), retriever.min() - 50)
    filled = {name: np.hstack([own, more * 0 + own.min()]) for name, own in opinions.items()}
    masked = np.hstack([np.zeros(retriever.shape, bool), np.ones(more.shape, bool)])
    fusion = fit_fusion(np.hstack([retriever, more]), filled, targets, masked)
    assert fusion.weights["ranker"] == pytest.approx(alone.weights["ranker"], rel=1e-3)
    assert fusion.steps[0].gain == pytest.approx(alone.steps[0].gain, abs=1e-6)


def test_the_scale_of_the_retriever_changes_no_order():
    retriever, opinions, targets = choices(1.0, 0.5)
    fusion = fit_fusion(retriever, opinions, targets)
    shifted = fit_fusion(retriever + 7.0, opinions, targets)
    assert shifted.weights["ranker"] == pytest.approx(fusion.weights["ranker"], rel=1e-3)
    scaled = fit_fusion(10.0 * retriever, opinions, targets)
    orders = [
        own.final("SASRec").scores(scores, opinions).argsort(1)
        for scores, own in ((retriever, fusion), (10.0 * retriever, scaled))
    ]
    assert (orders[0] == orders[1]).mean() > 0.99


def test_nothing_to_fit_on_gives_weight_0():
    nothing = np.empty((0, 8))
    fusion = fit_fusion(nothing, {"a": nothing, "b": nothing}, np.empty(0, dtype=np.int64))
    assert fusion.weights == {"a": 0.0, "b": 0.0} and fusion.n_rows == 0
    assert [step.p_value for step in fusion.steps] == [1.0, 1.0]
    assert [step.beside_retriever for step in fusion.steps] == [0.0, 0.0]


def test_two_scorers_both_get_the_weights_that_made_the_choices():
    fusion = fit_fusion(*choices_of_three((1.0, 0.6, 0.3)))
    assert fusion.weights == {
        "evidence": pytest.approx(0.6, rel=0.15),
        "ranker": pytest.approx(0.3, rel=0.15),
    }
    assert list(fusion.weights) == [step.scorer for step in fusion.steps] == ["evidence", "ranker"]
    assert fusion.steps[-1].weights == fusion.weights


def test_a_scorer_has_no_credit_for_what_those_before_it_say():
    retriever, opinions, targets = choices_of_three((1.0, 1.0, 0.0))
    evidence = opinions["evidence"]
    ranker = evidence + 0.5 * opinions["ranker"]
    assert fit_fusion(retriever, {"ranker": ranker}, targets).weights["ranker"] > 0.3
    fusion = fit_fusion(retriever, {"evidence": evidence, "ranker": ranker}, targets)
    assert fusion.weights == {"evidence": pytest.approx(1.0, rel=0.15), "ranker": 0}
    assert fusion.steps[0].weights["evidence"] == fusion.weights["evidence"]


def test_each_scorer_has_its_weight_beside_the_retriever_alone():
    """Equal to that of a fusion without the others."""
    retriever, opinions, targets = choices_of_three((1.0, 0.6, 0.3))
    opinions["ranker"] = opinions["ranker"] + opinions["evidence"]
    steps = fit_fusion(retriever, opinions, targets).steps
    for step in steps:
        alone = fit_fusion(retriever, {step.scorer: opinions[step.scorer]}, targets)
        assert alone.weights == {step.scorer: step.beside_retriever}
    assert steps[1].beside_retriever > steps[1].weights["ranker"] + 0.1


def test_a_fusion_from_before_has_no_stage_of_a_weight_that_was_not_fitted():
    state = fit_fusion(*choices_of_three((1.0, 0.6, 0.3))).state()
    assert Fusion.from_state(state).state() == state
    for step in state["steps"]:
        del step["beside_retriever"]
    names = [stage.name for stage in Fusion.from_state(state).stages("LRURec", ["evidence"])]
    fused = ["LRURec + evidence", "LRURec + evidence + ranker"]
    assert names[:-1] == ["LRURec", *fused, "evidence"]


def test_a_scorer_without_worth_leaves_the_others_as_they_are_without_it():
    retriever, opinions, targets = choices_of_three((1.0, 0.0, 0.5))
    fusion = fit_fusion(retriever, opinions, targets)
    alone = fit_fusion(retriever, {"ranker": opinions["ranker"]}, targets)
    assert fusion.weights == {"evidence": 0, **alone.weights}
    assert fusion.steps[0].weights == {"evidence": 0}


def test_without_the_ranker_the_evidence_has_a_weight_of_its_own():
    retriever, opinions, targets = choices_of_three((1.0, 0.6, 0.6))
    correlated = opinions["ranker"] + opinions["evidence"]
    fusion = fit_fusion(retriever, {**opinions, "ranker": correlated}, targets)
    assert fusion.steps[0].weights["evidence"] > fusion.weights["evidence"] + 0.3


# --- scores and stages ---------------------------------------------------------------------------


def test_the_scores_of_a_stage_by_hand():
    retriever = np.log([[0.5, 0.25, 0.25]])
    opinions = {"a": np.log([[0.1, 0.8, 0.1]])}
    beside = Stage("", {"a": 2.0, "absent": 0.0}).scores(retriever, opinions)
    assert np.allclose(beside, np.log([[0.5 * 0.01, 0.25 * 0.64, 0.25 * 0.01]]))
    alone = Stage("", {"a": 2.0}, with_retriever=False).scores(retriever, opinions)
    assert np.allclose(alone, np.log([[0.01, 0.64, 0.01]]))


def test_equal_scores_keep_the_retrievers_order():
    assert best_first_of(torch.zeros(1, 4)).tolist() == [[0, 1, 2, 3]]
    assert best_first_of(torch.tensor([[1.0, 2.0, 1.0, 2.0]])).tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize(
    ("setting", "scorers", "final", "weights"),
    [
        (None, ["letters"], "final: letters", {"letters": 1.0}),
        (0.7, ["letters"], "final: LRURec + letters", {"letters": 0.7}),
        (0, ["letters"], "final: LRURec", {"letters": 0.0}),
        ("auto", ["evidence", "letters"], "final: LRURec", None),
        ("auto", [], "final: LRURec", {}),
    ],
)
def test_the_key_rerank_fusion_says_what_decides(setting, scorers, final, weights):
    fusion = Fusion.from_setting(setting, scorers)
    assert fusion.weights == weights
    assert fusion.final("LRURec").name == final
    assert fusion.changes_order is bool(weights and any(weights.values()))
    assert not fusion.is_fitted


FITTED = Fusion(
    {"evidence": 0.4, "toy": 0.0, "letters": 0.7},
    steps=(
        FusionStep("evidence", 0.2, 0.001, {"evidence": 0.5}, 0.5),
        FusionStep("toy", 0.0, 0.6, {"evidence": 0.5, "toy": 0.0}, 0.2),
        FusionStep("letters", 0.1, 0.01, {"evidence": 0.4, "toy": 0.0, "letters": 0.7}, 0.9),
    ),
    n_rows=30,
)


@pytest.mark.parametrize(
    ("fusion", "scorers", "names"),
    [
        (Fusion({}), [], ["LRURec"]),
        (
            Fusion({"letters": 1.0}, with_retriever=False),
            ["letters"],
            ["LRURec", "letters", "final: letters"],
        ),
        (Fusion({"letters": 0.5}), ["letters"], ["LRURec", "letters", "final: LRURec + letters"]),
        (Fusion(None), ["evidence"], ["LRURec", "evidence", "final: LRURec"]),
        (
            FITTED,
            ["evidence", "toy", "letters"],
            [
                *("LRURec", "LRURec + evidence", "LRURec + toy", "LRURec + letters"),
                *("LRURec + evidence + toy", "LRURec + evidence + toy + letters"),
                *("evidence", "toy", "letters", "final: LRURec + evidence + letters"),
            ],
        ),
    ],
)
def test_the_stages_are_the_retriever_each_beside_it_the_cumulated_each_alone_and_the_final_order(
    fusion, scorers, names
):
    assert [stage.name for stage in fusion.stages("LRURec", scorers)] == names


def test_a_cumulated_stage_has_the_weights_of_its_step():
    stages = {s.name: s for s in FITTED.stages("LRURec", list(FITTED.weights or {}))}
    assert stages["LRURec + evidence"].weights == {"evidence": 0.5}
    assert stages["LRURec + letters"].weights == {"letters": 0.9}
    assert stages["LRURec + evidence + toy + letters"].weights == FITTED.weights
    assert stages["toy"].weights == {"toy": 1.0} and not stages["toy"].with_retriever
    assert stages["LRURec"].weights == {}


def test_the_summary_says_what_each_scorer_adds_to_what():
    lines = FITTED.summary().splitlines()
    assert "evidence has weight 0.400 (adds 0.2000 nats a row to the retriever, p" in lines[0]
    assert "toy has weight 0.000" in lines[1] and "to the retriever + evidence," in lines[1]
    assert "to the retriever + evidence, p = 0.01" in lines[2]  # what has weight 0 is left out
    assert "on 30 validation rows" in lines[3]
    assert lines[3].endswith("the final order is the retriever + evidence + letters's.")


@pytest.mark.parametrize("fusion", [FITTED, Fusion(None), Fusion({"a": 1.0}, with_retriever=False)])
def test_a_fusion_comes_back_from_a_file_of_plain_values(fusion, tmp_path):
    torch.save(fusion.state(), tmp_path / "fusion.pt")
    state = torch.load(tmp_path / "fusion.pt", weights_only=True)
    assert Fusion.from_state(state) == fusion
