"""One optimizer step, against the plain way: one pass over the whole batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from runs import language_model_of, pools_of, randomise_adapter
from torch.amp import GradScaler

from recbole_llamarec.finite import NotFiniteError
from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.loading import LanguageModelSettings
from recbole_llamarec.tuning import step as step_module
from recbole_llamarec.tuning.step import loss_scaler, optimizer_step

N_ROWS = 11


@pytest.fixture
def scorer(tiny_llama):
    scorer = language_model_of(tiny_llama)
    randomise_adapter(scorer)
    return scorer


@pytest.fixture
def batch(scorer):
    histories, pools, targets = pools_of(N_ROWS)
    encoded = [scorer.ranker.encode(h, c) for h, c in zip(histories, pools, strict=True)]
    return encoded, targets


def trainable(scorer) -> list[torch.nn.Parameter]:
    return [weight for weight in scorer.ranker.model.parameters() if weight.requires_grad]


def gradients_of(scorer) -> list[torch.Tensor]:
    return [weight.grad.clone() for weight in trainable(scorer)]


def step(scorer, batch, tokens: int, loss=None, learning_rate: float = 0.0, **options) -> float:
    optimizer = torch.optim.SGD(trainable(scorer), lr=learning_rate)
    options.setdefault("budget", TokenBudget(tokens, "train_batch_tokens"))
    loss = loss or scorer.ranker.losses["label"]
    return optimizer_step(scorer.ranker, *batch, loss, optimizer, **options)


class Counting:
    """A loss that counts its passes, and runs out of memory where a pass is too large."""

    reads_candidates = True

    def __init__(self, most: int = N_ROWS, where: str = "forward") -> None:
        self.loss, self.most, self.where = LabelLoss(), most, where
        self.passes: list[int] = []

    def __call__(self, ranker, batch, targets):
        self.passes.append(len(batch))
        losses = self.loss(ranker, batch, targets)
        if len(batch) <= self.most:
            return losses
        if self.where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return RunsOutBackwards.apply(losses)


class RunsOutBackwards(torch.autograd.Function):
    """Passes its input on, and has no memory for the gradient."""

    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("loss", ["label", "next_token"])
def test_passes_within_the_budget_add_up_to_the_gradient_of_the_whole_batch(scorer, batch, loss):
    whole = step(scorer, batch, 100_000, scorer.ranker.losses[loss])
    expected = gradients_of(scorer)
    assert step(scorer, batch, 300, scorer.ranker.losses[loss]) == pytest.approx(whole, abs=1e-5)
    for gradient, other in zip(gradients_of(scorer), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_memory_that_runs_out_cuts_the_budget_and_restarts_the_step_with_the_same_gradients(
    tiny_llama, where, attention, caplog
):
    """Passes that had been computed before are not counted twice."""
    from recbole_llamarec.ranking.model.loading import LanguageModelSettings

    llm = LanguageModelSettings(name_or_path=str(tiny_llama), dtype="float32", attention=attention)
    scorer = language_model_of(tiny_llama, llm=llm)
    randomise_adapter(scorer)
    histories, pools, targets = pools_of(N_ROWS)
    encoded = [scorer.ranker.encode(h, c) for h, c in zip(histories, pools, strict=True)]
    batch = encoded, targets
    longest = max(own.n_tokens for own in encoded)
    whole = step(scorer, batch, 100_000)
    expected = gradients_of(scorer)

    loss, budget, done = Counting(most=4, where=where), TokenBudget(9 * longest, "a key"), []
    found = step(scorer, batch, 0, loss, budget=budget, on_progress=done.append)
    assert found == pytest.approx(whole, abs=1e-5)
    for gradient, other in zip(gradients_of(scorer), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3)
    assert max(loss.passes) > 4 and budget.tokens < 9 * longest
    assert "a key is" in caplog.text
    assert sum(done) == N_ROWS
    cut = budget.tokens
    loss.passes.clear()
    step(scorer, batch, 0, loss, budget=budget)
    assert max(loss.passes) <= 4 and budget.tokens == cut  # the next step does not fail again


def test_a_pass_of_shared_beginnings_that_is_too_large_cuts_the_budget_too(scorer):
    """Its prompts have more tokens than it computes, which once left the budget as it was."""
    history, pool = list(range(1, 20)), list(range(30, 37))
    encoded = [scorer.ranker.encode(history, pool[i:] + pool[:i]) for i in range(7)]
    targets = np.eye(7, dtype=np.float32)
    assert scorer.ranker.shares_beginnings
    budget = TokenBudget(2 * encoded[0].n_tokens, "train_batch_tokens")
    loss = Counting(most=1)
    step(scorer, (encoded, targets), 0, loss, budget=budget)
    assert loss.passes[-7:] == [1] * 7


def test_a_single_sample_that_does_not_fit_stops_with_a_remedy(scorer, batch):
    with pytest.raises(torch.OutOfMemoryError, match=r"train_batch_tokens: one sample of \d+ tok"):
        step(scorer, batch, 4000, Counting(most=0))


def test_other_errors_of_the_runtime_are_not_taken_for_memory(scorer, batch):
    def broken(ranker, part, targets):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        step(scorer, batch, 4000, broken)


def test_a_loss_that_is_not_finite_stops_with_a_remedy(scorer, batch):
    for weight in trainable(scorer):
        weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="loss is nan; lower learning_rate"):
        step(scorer, batch, 4000)


def test_gradients_are_clipped_to_the_norm(scorer, batch):
    step(scorer, batch, 4000)
    plain = gradients_of(scorer)
    norm = torch.stack([gradient.norm() for gradient in plain]).norm()
    step(scorer, batch, 4000, clipping={"max_norm": float(norm) / 2})
    for gradient, other in zip(gradients_of(scorer), plain, strict=True):
        torch.testing.assert_close(gradient, other / 2, rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_in_the_norm_that_is_named(scorer, batch):
    step(scorer, batch, 4000)
    plain = gradients_of(scorer)
    absolute = sum(float(gradient.abs().sum()) for gradient in plain)
    step(scorer, batch, 4000, clipping={"max_norm": absolute / 2, "norm_type": 1})
    for gradient, other in zip(gradients_of(scorer), plain, strict=True):
        torch.testing.assert_close(gradient, other / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_loss_is_scaled_in_float16_alone(tiny_llama, dtype):
    llm = LanguageModelSettings(name_or_path=str(tiny_llama), dtype=dtype)
    scorer = language_model_of(tiny_llama, llm=llm)
    assert loss_scaler(scorer.ranker.model).is_enabled() == (dtype == "float16")


def test_a_scaled_loss_gives_the_gradients_of_the_plain_one(scorer, batch):
    step(scorer, batch, 900, clipping={"max_norm": 0.1})
    expected = gradients_of(scorer)
    scaler = GradScaler("cpu", init_scale=2.0**16)
    step(scorer, batch, 900, clipping={"max_norm": 0.1}, scaler=scaler)
    for gradient, other in zip(gradients_of(scorer), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


class Overflows(torch.autograd.Function):
    """Passes its input on; its gradient is infinite."""

    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.inf


def test_a_step_that_overflows_is_left_out_until_no_scale_helps(scorer, batch):
    def overflowing(ranker, part, targets):
        return Overflows.apply(LabelLoss()(ranker, part, targets))

    before, scaler = scorer.adapter_weights(), GradScaler("cpu", init_scale=2.0)
    step(scorer, batch, 900, overflowing, learning_rate=1.0, scaler=scaler)
    assert scaler.get_scale() == 1.0
    with pytest.raises(NotFiniteError, match="llm_dtype to float32 or bfloat16"):
        step(scorer, batch, 900, overflowing, learning_rate=1.0, scaler=scaler)
    after = scorer.adapter_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_runs_out_in_tuning_fails_as_often_as_the_budget_is_halved(
    scorer, batch, where
):
    longest = max(own.n_tokens for own in batch[0])
    loss, budget = Counting(most=1, where=where), TokenBudget(8 * longest, "train_batch_tokens")
    step(scorer, batch, 0, loss, budget=budget)
    n_failures = sum(size > 1 for size in loss.passes)
    assert 0 < n_failures <= math.ceil(math.log2(8)) and loss.passes[-N_ROWS:] == [1] * N_ROWS


def test_gradients_are_averaged_over_processes_before_they_are_applied(scorer, batch, monkeypatch):
    before, calls = scorer.adapter_weights(), []

    def drop(gradients):
        calls.append(len(gradients))
        for gradient in gradients:
            gradient.zero_()

    monkeypatch.setattr(step_module.distributed, "average_gradients", drop)
    step(scorer, batch, 4000, learning_rate=1.0)
    assert calls == [len(trainable(scorer))]
    after = scorer.adapter_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_steps_learn_and_touch_the_adapter_alone(tiny_llama, batch):
    scorer = language_model_of(tiny_llama)
    model = scorer.ranker.model
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable(scorer), lr=3e-2)
    budget = TokenBudget(4000, "train_batch_tokens")
    loss = scorer.ranker.losses["label"]
    losses = [
        optimizer_step(scorer.ranker, *batch, loss, optimizer, budget, {"max_norm": 1.0})
        for _ in range(25)
    ]
    assert losses[-1] < losses[0] - 0.3
    assert all(
        torch.equal(weight, dict(model.named_parameters())[n]) for n, weight in frozen.items()
    )


def test_a_step_computes_no_logits_of_the_whole_vocabulary(scorer, batch):
    head = scorer.ranker.model.get_base_model().lm_head
    head.register_forward_hook(lambda *_: pytest.fail("the whole head was computed"))
    step(scorer, batch, 900)
