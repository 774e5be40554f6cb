"""Ranking of many users in batches: orders, budgets, interruptions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from rankers import ListLog, budget_of, gradient_of, one_hot, parts_of, trainable

from recbole_llamarec.finite import RowError
from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.likelihood import Likelihood
from recbole_llamarec.ranking.model.packed_attention import _causal_mask
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.ranking.readout import Readout

K = 7


@pytest.fixture(params=[Letters, Likelihood, Readout])
def ranker(request, tiny_llama):
    return request.param.build(parts_of(tiny_llama, likelihood_prior=0.5))


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    orders = [generator.permutation(np.arange(1, 51)).tolist() for _ in range(11)]
    histories = [order[: int(generator.integers(0, 25))] for order in orders]
    return histories, [order[-K:] for order in orders]


def test_ranking_nothing(ranker):
    assert rank_all(ranker, [], [], budget_of(900)).shape == (0, 0)


def test_every_row_is_a_distribution_in_the_order_given(ranker, samples):
    scores = rank_all(ranker, *samples, budget_of(900))
    assert scores.dtype == torch.float32 and scores.shape == (11, K)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(11))
    for row, sample in enumerate(zip(*samples, strict=True)):
        alone = rank_all(ranker, *([part] for part in sample), budget_of(900))
        torch.testing.assert_close(scores[row], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_evaluates_within_and_is_afterwards_as_it_was(ranker, samples, is_training):
    modes = []
    ranker.model.get_base_model().get_decoder().register_forward_hook(
        lambda module, *_: modes.append(module.training)
    )
    ranker.model.train(is_training)
    assert not rank_all(ranker, *samples, budget_of(900)).requires_grad
    assert modes and not any(modes)
    assert ranker.model.training == is_training


def test_the_model_is_as_it_was_after_an_error(ranker, samples):
    ranker.model.train()
    for weight in trainable(ranker.model):
        weight.data.fill_(float("nan"))
    with pytest.raises(ValueError):
        rank_all(ranker, *samples, budget_of(900))
    assert ranker.model.training


def test_scores_that_are_not_finite_name_row_and_remedy(ranker, samples):
    for weight in trainable(ranker.model):
        weight.data.fill_(float("nan"))
    longest = max(range(11), key=lambda i: ranker.encode(samples[0][i], samples[1][i]).n_tokens)
    with pytest.raises(ValueError, match=rf"row {longest} are not finite.*llm_dtype.*learning_ra"):
        rank_all(ranker, *samples, budget_of(1))


def test_an_error_of_no_row_in_particular_is_left_as_it_is(ranker, samples, monkeypatch):
    def scores(batch):
        raise RowError("all of them")

    monkeypatch.setattr(ranker, "scores", scores)
    with pytest.raises(RowError, match="^all of them$"):
        rank_all(ranker, *samples, budget_of(900))


def test_a_ranker_that_has_ranked_in_inference_mode_can_be_tuned(ranker, samples):
    _causal_mask.cache_clear()
    with torch.inference_mode():
        rank_all(ranker, *samples, budget_of(900))
    encoded = [ranker.encode(*row) for row in zip(*samples, strict=True)]
    gradient_of(ranker, encoded, one_hot([0] * len(encoded), K), "label")
    assert any(weight.grad is not None for weight in trainable(ranker.model))


@pytest.mark.parametrize("ranker_class", [Letters, Likelihood, Readout])
def test_longer_prompts_than_the_model_reads_are_refused(tiny_llama, ranker_class):
    ranker_class.build(parts_of(tiny_llama, prompt_max_tokens=2048))
    with pytest.raises(ValueError, match="prompt_max_tokens: 2049 .* 2048 positions; .* most 2048"):
        ranker_class.build(parts_of(tiny_llama, prompt_max_tokens=2049))


def test_users_with_different_numbers_of_candidates_are_refused(ranker):
    with pytest.raises(ValueError, match="from 2 to 3 candidates"):
        rank_all(ranker, [[1], [1]], [[2, 3], [2, 3, 4]], budget_of(900))


def test_more_candidates_than_the_ranker_takes_are_refused(tiny_llama):
    ranker = Letters.build(parts_of(tiny_llama))
    with pytest.raises(ValueError, match="rerank_candidates: 8 candidates.* 7; .*labels"):
        rank_all(ranker, [[1]], [list(range(2, 10))], budget_of(900))


def test_cut_histories_are_counted_in_the_log(tiny_llama, samples, caplog):
    whole = Letters.build(parts_of(tiny_llama))
    lengths = [whole.encode(h, c).n_tokens for h, c in zip(*samples, strict=True)]
    too_long = sum(length == max(lengths) for length in lengths)
    with caplog.at_level("WARNING"):
        parts = parts_of(tiny_llama, prompt_max_tokens=max(lengths) - 1)
        rank_all(Letters.build(parts), *samples, budget_of(900))
    assert f"{too_long} prompts lost their oldest history" in caplog.text
    caplog.clear()
    rank_all(whole, *samples, budget_of(900))
    assert not caplog.records


# --- memory --------------------------------------------------------------------------------------


class SmallDevice:
    """A ranker on a device that holds a number of tokens."""

    def __init__(self, ranker, n_tokens: int) -> None:
        self.ranker, self.n_tokens, self.n_failures = ranker, n_tokens, 0
        self.model, self.prompts, self.encode = ranker.model, ranker.prompts, ranker.encode
        self.max_candidates, self.losses = ranker.max_candidates, ranker.losses

    def scores(self, batch: Sequence) -> torch.Tensor:
        if len(batch) * max(own.n_tokens for own in batch) > self.n_tokens:
            self.n_failures += 1
            raise torch.OutOfMemoryError
        return self.ranker.scores(batch)


def test_a_batch_that_does_not_fit_into_memory_is_cut_once_for_all(ranker, samples, caplog):
    expected = rank_all(ranker, *samples, budget_of(900))
    device, budget = SmallDevice(ranker, 700), budget_of(5000)
    with caplog.at_level("WARNING"):
        scores = rank_all(device, *samples, budget)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert device.n_failures <= 4 and budget.tokens <= 700
    assert "llm_batch_tokens is" in caplog.text
    with pytest.raises(torch.OutOfMemoryError, match="llm_batch_tokens: one prompt"):
        rank_all(SmallDevice(ranker, 10), *samples, budget)


# --- interruptions -------------------------------------------------------------------------------


def test_a_pass_that_was_interrupted_ends_with_the_same_bits(tiny_llama, ranker, samples):
    log = ListLog()
    expected = rank_all(ranker, *samples, budget_of(600), log=log)
    assert len(log.batches) > 2
    for n_batches in range(len(log.batches) + 1):
        resumed = ListLog.interrupted(log, n_batches)
        again = type(ranker).build(parts_of(tiny_llama, likelihood_prior=0.5))
        scores = rank_all(again, *samples, budget_of(600), log=resumed)
        assert torch.equal(scores, expected)
        kept = zip(resumed.batches, log.batches[n_batches:], strict=True)
        assert all(torch.equal(*pair) for pair in kept)


def test_a_pass_goes_on_with_the_budget_that_is_left(ranker, samples):
    log = ListLog()
    expected = rank_all(ranker, *samples, budget_of(600), log=log)
    resumed = ListLog.interrupted(log, 2)
    scores = rank_all(ranker, *samples, budget_of(500), log=resumed)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    n_done = sum(map(len, log.batches[:2]))
    assert n_done + sum(map(len, resumed.batches)) == 11


@pytest.mark.parametrize("shape", [(2, K - 1), (12, K)])
def test_the_log_of_another_pass_is_refused(ranker, samples, shape):
    with pytest.raises(ValueError, match="are of another one"):
        rank_all(ranker, *samples, budget_of(900), log=ListLog([torch.zeros(shape)]))
