"""The ranker against the plain way: full text, one prompt at a time, all logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import titles

from recbole_llamarec.ranking.adapter import LoraSettings, adapter_state, add_adapter
from recbole_llamarec.ranking.binding import bind_labels
from recbole_llamarec.ranking.language_model import LanguageModelSettings, load_language_model
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.ranking.tuning import tuning_step
from recbole_llamarec.ranking.verbalizer import Verbalizer, default_labels

K = 7


@pytest.fixture
def ranker(tiny_llama) -> Ranker:
    settings = LanguageModelSettings(name_or_path=str(tiny_llama), dtype="float32")
    model, tokenizer = load_language_model(settings, torch.device("cpu"))
    model = add_adapter(model, LoraSettings(dropout=0.0), seed=1)
    prompts = PromptBuilder(tokenizer, ["", *titles(50)], default_labels(K))
    text = prompts.text([1], range(1, K + 1))
    verbalizer = Verbalizer.for_tokenizer(tokenizer, default_labels(K), text)
    return Ranker(model, prompts, verbalizer, batch_tokens=900)


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    histories = [
        generator.permutation(np.arange(1, 51))[: generator.integers(0, 25)].tolist()
        for _ in range(11)
    ]
    candidates = [generator.permutation(np.arange(1, 51))[:K].tolist() for _ in histories]
    return histories, candidates, generator.integers(0, K, len(histories)).tolist()


def reference_logits(ranker: Ranker, history, candidates) -> torch.Tensor:
    tokenizer = ranker.prompts.tokenizer
    inputs = tokenizer(ranker.prompts.text(history, candidates), return_tensors="pt")
    logits = ranker.model(input_ids=inputs["input_ids"]).logits[0, -1]  # [V]
    letters = [tokenizer(f": {letter}")["input_ids"][-1] for letter in default_labels(K)]
    return logits[letters]


def randomise_adapter(model) -> None:
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1


def test_scores_equal_the_plain_way(ranker, samples):
    randomise_adapter(ranker.model)
    histories, candidates, _ = samples
    scores = ranker.rank(histories, candidates)
    with torch.no_grad():
        expected = torch.stack(
            [
                reference_logits(ranker, h, c).log_softmax(-1)
                for h, c in zip(histories, candidates, strict=True)
            ]
        )
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(histories)))


def test_permutations_average_over_rotations_and_read_the_history_once(ranker, samples):
    randomise_adapter(ranker.model)
    histories, candidates, _ = samples
    expected = []
    for history, pool in zip(histories, candidates, strict=True):
        found = []
        for shift in (0, 2, 4):  # 7 candidates, 3 rotations
            shown = pool[shift:] + pool[:shift]
            (scores,) = ranker.rank([history], [shown])
            found.append(torch.stack([scores[shown.index(item)] for item in pool]))
        expected.append(torch.stack(found).mean(0).log_softmax(-1))

    ranker.n_permutations = 3
    rows = []
    decoder = ranker.model.get_base_model().get_decoder()
    decoder.layers[0].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    scores = ranker.rank(histories, candidates)
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-4, rtol=1e-4)
    plain = sum(
        len(ranker.prompts.encode(h, c)) for h, c in zip(histories, candidates, strict=True)
    )
    assert sum(rows) < 0.8 * 3 * plain


def test_a_batch_that_does_not_fit_into_memory_is_halved(ranker, samples, monkeypatch, caplog):
    histories, candidates, _ = samples
    expected = ranker.rank(histories, candidates)
    whole = ranker.label_logits

    def small_device(prompts, n_candidates):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError
        return whole(prompts, n_candidates)

    monkeypatch.setattr(ranker, "label_logits", small_device)
    with caplog.at_level("WARNING"):
        scores = ranker.rank(histories, candidates)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert "llm_batch_tokens is 450" in caplog.text

    def no_device(prompts, n_candidates):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ranker, "label_logits", no_device)
    with pytest.raises(torch.OutOfMemoryError):
        ranker.rank(histories, candidates)


def test_neither_ranking_nor_tuning_calls_the_whole_head(ranker, samples):
    head = ranker.model.get_base_model().lm_head
    head.register_forward_hook(lambda *_: pytest.fail("the whole head was computed"))
    histories, candidates, labels = samples
    ranker.rank(histories, candidates)
    optimizer = torch.optim.SGD([p for p in ranker.model.parameters() if p.requires_grad], lr=0.1)
    tuning_step(ranker, histories, candidates, labels, optimizer, batch_tokens=900)


def test_cut_histories_are_counted_in_the_log(ranker, samples, caplog):
    histories, candidates, _ = samples
    lengths = [len(ranker.prompts.encode(h, c)) for h, c in zip(histories, candidates, strict=True)]
    ranker.prompts.max_prompt_tokens = max(lengths) - 1
    too_long = sum(length == max(lengths) for length in lengths)
    with caplog.at_level("WARNING"):
        ranker.rank(histories, candidates)
    assert f"{too_long} prompts lost their oldest history" in caplog.text
    caplog.clear()
    ranker.prompts.max_prompt_tokens = max(lengths)
    ranker.rank(histories, candidates)
    assert not caplog.records


def test_ranking_nothing(ranker):
    assert ranker.rank([], []).shape == (0, 0)


def trainable(ranker):
    return [p for p in ranker.model.parameters() if p.requires_grad]


def test_tuning_loss_and_gradient_equal_the_plain_way(ranker, samples):
    randomise_adapter(ranker.model)
    histories, candidates, labels = samples
    rows = zip(histories, candidates, strict=True)
    logits = torch.stack([reference_logits(ranker, h, c) for h, c in rows])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    gradients = torch.autograd.grad(expected, trainable(ranker))

    optimizer = torch.optim.SGD(trainable(ranker), lr=0.0)
    loss = tuning_step(ranker, histories, candidates, labels, optimizer, batch_tokens=700)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    for weight, gradient in zip(trainable(ranker), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_tuning_learns_and_touches_the_adapter_alone(ranker, samples):
    histories, candidates, labels = samples
    frozen = {n: p.clone() for n, p in ranker.model.named_parameters() if not p.requires_grad}
    before = adapter_state(ranker.model)
    optimizer = torch.optim.AdamW(trainable(ranker), lr=3e-2)
    losses = [
        tuning_step(ranker, histories, candidates, labels, optimizer, 4000, clip_norm=1.0)
        for _ in range(25)
    ]
    assert losses[-1] < losses[0] - 0.3
    after = adapter_state(ranker.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, weight in ranker.model.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name])


def test_gradients_are_handed_over_for_averaging(ranker, samples):
    histories, candidates, labels = samples
    optimizer = torch.optim.SGD(trainable(ranker), lr=1.0)
    before = adapter_state(ranker.model)

    def drop(gradients):
        assert gradients
        for gradient in gradients:
            gradient.zero_()

    tuning_step(ranker, histories, candidates, labels, optimizer, 4000, reduce_gradients=drop)
    after = adapter_state(ranker.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_not_finite_stops_with_a_remedy(ranker, samples):
    histories, candidates, labels = samples
    for weight in trainable(ranker):
        weight.data.fill_(float("nan"))
    optimizer = torch.optim.SGD(trainable(ranker), lr=1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        tuning_step(ranker, histories, candidates, labels, optimizer, 4000)


def plain_losses(ranker: Ranker, histories, candidates, labels) -> dict[str, torch.Tensor]:
    """Each loss as its formula stands, from logits of the whole text."""
    tokenizer, softplus = ranker.prompts.tokenizer, torch.nn.functional.softplus
    ranknet, next_token = [], []
    for history, pool, label in zip(histories, candidates, labels, strict=True):
        logits = reference_logits(ranker, history, pool)
        others = [j for j in range(K) if j != label]
        ranknet.append(softplus(logits[others] - logits[label]).mean())
        prompt = tokenizer(ranker.prompts.text(history, pool))["input_ids"]
        letter = ranker.verbalizer.token_ids[label]
        answered = torch.tensor([[*prompt, letter]])
        rows = ranker.model(input_ids=answered).logits[0, -2:].log_softmax(-1)  # [2, V]
        next_token.append(-(rows[0, letter] + rows[1, tokenizer.eos_token_id]) / 2)
    return {"ranknet": torch.stack(ranknet).mean(), "next_token": torch.stack(next_token).mean()}


@pytest.mark.parametrize("name", ["ranknet", "next_token"])
def test_other_losses_and_their_gradients_equal_the_plain_way(ranker, samples, name):
    randomise_adapter(ranker.model)
    histories, candidates, labels = samples
    expected = plain_losses(ranker, histories, candidates, labels)[name]
    gradients = torch.autograd.grad(expected, trainable(ranker))
    optimizer = torch.optim.SGD(trainable(ranker), lr=0.0)
    loss = tuning_step(ranker, histories, candidates, labels, optimizer, 700, loss=name)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    for weight, gradient in zip(trainable(ranker), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_the_label_prior_is_measured_and_subtracted(ranker, samples):
    histories, _, _ = samples
    randomise_adapter(ranker.model)
    generator = np.random.default_rng(1)
    pools = [generator.permutation(np.arange(1, 51))[:K].tolist() for _ in range(60)]
    histories = [histories[i % len(histories)] for i in range(60)]
    before = ranker.rank(histories, pools)
    prior = ranker.measure_label_prior(histories, pools)
    assert prior.shape == (K,)
    assert prior.mean().abs() < 1e-6
    assert torch.allclose(prior, before.mean(0) - before.mean(0).mean(), atol=1e-5)
    ranker.label_prior = prior
    after = ranker.rank(histories, pools)
    assert torch.allclose(after, (before - prior).log_softmax(-1), atol=1e-5)
    assert after.mean(0).std() < before.mean(0).std() / 2
    assert torch.allclose(ranker.measure_label_prior(histories, pools), prior)  # not on top of it


def test_binding_tunes_the_adapter_to_point_at_the_last_item(ranker):
    losses = [loss for *_, loss in bind_labels(ranker, 30, np.random.default_rng(0), 1e-2)]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
