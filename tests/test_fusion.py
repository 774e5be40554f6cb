"""The weight of the ranker beside its retriever."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from recbole_llamarec.evaluation import ranks_of
from recbole_llamarec.fusion import MOST, fit_fusion, fused


def choices(retriever_factor: float, ranker_factor: float, n_rows: int = 4000, seed: int = 0):
    """Targets drawn by a conditional logit over both stages' scores."""
    generator = np.random.default_rng(seed)
    retriever = log_softmax(generator.normal(size=(n_rows, 8)), axis=1)
    ranker = log_softmax(generator.normal(size=(n_rows, 8)), axis=1)
    utility = retriever_factor * retriever + ranker_factor * ranker
    targets = (utility + generator.gumbel(size=utility.shape)).argmax(1)
    return retriever, ranker, targets


@pytest.mark.parametrize(("retriever", "ranker"), [(1.0, 0.5), (0.5, 1.0), (2.0, 0.3)])
def test_the_weight_that_made_the_choices_is_found(retriever, ranker):
    found = fit_fusion(*choices(retriever, ranker))
    assert found.weight == pytest.approx(ranker / retriever, rel=0.15)
    assert found.p_value < 1e-6
    assert "weight" in found.summary()


@pytest.mark.parametrize("seed", range(5))
def test_a_useless_ranker_gets_no_weight(seed):
    found = fit_fusion(*choices(1.0, 0.0, seed=seed))
    assert found.weight == 0
    assert "adds nothing" in found.summary()


def test_a_ranker_that_is_wrong_gets_no_weight():
    assert fit_fusion(*choices(1.0, -1.0)).weight == 0


def test_a_useless_retriever_leaves_the_ranker_in_charge():
    found = fit_fusion(*choices(-0.2, 1.0))
    assert found.weight == MOST


def test_the_scale_of_the_retriever_does_not_matter():
    retriever, ranker, targets = choices(1.0, 0.5)
    weight = fit_fusion(retriever, ranker, targets).weight
    shifted = fit_fusion(retriever + 7.0, ranker, targets)
    assert shifted.weight == pytest.approx(weight, rel=1e-3)
    scaled = fit_fusion(10.0 * retriever, ranker, targets)
    orders = [
        fused(scores, [ranker], [w]).argsort(1)
        for scores, w in ((retriever, weight), (10.0 * retriever, scaled.weight))
    ]
    assert (orders[0] == orders[1]).mean() > 0.99


def test_nothing_to_fit_on_is_weight_0():
    found = fit_fusion(np.empty((0, 8)), np.empty((0, 8)), np.empty(0, dtype=np.int64))
    assert (found.weight, found.n_rows) == (0.0, 0)


def test_fused_scores_by_hand():
    scores = fused(np.log([[0.5, 0.25, 0.25]]), [np.log([[0.1, 0.8, 0.1]])], [2.0])
    assert np.allclose(scores, np.log([[0.5 * 0.01, 0.25 * 0.64, 0.25 * 0.01]]))
    assert ranks_of(scores, np.array([0])).tolist() == [2]


def with_evidence(factors: tuple[float, float, float], n_rows: int = 4000):
    """Targets drawn by a conditional logit over retriever, evidence and ranker."""
    generator = np.random.default_rng(1)
    retriever, evidence, ranker = generator.normal(size=(3, n_rows, 8))
    utility = sum(f * x for f, x in zip(factors, (retriever, evidence, ranker), strict=True))
    targets = (utility + generator.gumbel(size=utility.shape)).argmax(1)
    return retriever, ranker, targets, evidence


def test_evidence_and_ranker_both_get_the_weights_that_made_the_choices():
    found = fit_fusion(*with_evidence((1.0, 0.6, 0.3)))
    assert found.evidence.weight == pytest.approx(0.6, rel=0.15)
    assert found.weight == pytest.approx(0.3, rel=0.15)
    assert "the evidence has weight" in found.summary()


def test_the_ranker_has_no_credit_for_what_the_evidence_says():
    retriever, noise, targets, evidence = with_evidence((1.0, 1.0, 0.0))
    ranker = evidence + 0.5 * noise
    assert fit_fusion(retriever, ranker, targets).weight > 0.3
    found = fit_fusion(retriever, ranker, targets, evidence)
    assert (found.weight, found.evidence.weight) == (0, pytest.approx(1.0, rel=0.15))
    assert found.evidence.weight == found.evidence.without_ranker
    assert "adds nothing to the retriever and the evidence" in found.summary()


def test_evidence_without_worth_leaves_the_ranker_as_it_is_without_it():
    retriever, ranker, targets, evidence = with_evidence((1.0, 0.0, 0.5))
    found = fit_fusion(retriever, ranker, targets, evidence)
    assert (found.evidence.weight, found.evidence.without_ranker) == (0, 0)
    assert found.weight == fit_fusion(retriever, ranker, targets).weight


def test_without_the_ranker_the_evidence_has_its_own_weight():
    retriever, noise, targets, evidence = with_evidence((1.0, 0.6, 0.6))
    ranker = noise + evidence  # correlated: half of what it says is the evidence
    found = fit_fusion(retriever, ranker, targets, evidence)
    assert found.evidence.without_ranker > found.evidence.weight + 0.3


def test_equal_scores_keep_their_order():
    assert ranks_of(np.zeros((3, 4)), np.array([0, 1, 3])).tolist() == [1, 2, 4]
