"""The ranker by letters against the plain way: full text, one prompt at a time, all logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prompt_texts import PAPER
from rankers import (
    WAYS,
    budget_of,
    gradient_of,
    one_hot,
    parts_of,
    randomise_adapter,
    scale_logits,
    trainable,
    tuned,
)
from transformers import AutoTokenizer

from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.model.adapter import adapter_state
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.ranking.verbalizer import default_labels

K = 7


@pytest.fixture
def ranker(tiny_llama) -> Letters:
    return Letters.build(parts_of(tiny_llama))


@pytest.fixture(params=WAYS)
def any_ranker(request, tiny_llama) -> Letters:
    return Letters.build(parts_of(tiny_llama, request.param))


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    histories = [
        generator.permutation(np.arange(1, 51))[: generator.integers(0, 25)].tolist()
        for _ in range(11)
    ]
    candidates = [generator.permutation(np.arange(1, 51))[:K].tolist() for _ in histories]
    return histories, candidates, generator.integers(0, K, len(histories)).tolist()


def encoded_of(ranker: Letters, samples) -> list:
    histories, candidates, _ = samples
    return [ranker.encode(*row) for row in zip(histories, candidates, strict=True)]


def reference_logits(ranker: Letters, history, candidates) -> torch.Tensor:
    tokenizer = ranker.prompts.tokenizer
    text = ranker.prompts.text(history, candidates)
    inputs = tokenizer(text, return_tensors="pt")
    logits = ranker.model(input_ids=inputs["input_ids"]).logits[0, -1]  # [V]
    letters = [tokenizer(text + letter)["input_ids"][-1] for letter in default_labels(K)]
    return logits[letters]


def reference_next_token(ranker: Letters, samples) -> torch.Tensor:
    """The mean loss as its formula stands, from all logits of the whole text."""
    tokenizer, losses = ranker.prompts.tokenizer, []
    for history, pool, label in zip(*samples, strict=True):
        prompt = tokenizer(ranker.prompts.text(history, pool))["input_ids"]
        letter = ranker.verbalizer.token_ids[label]
        answered = torch.tensor([[*prompt, letter]])
        rows = ranker.model(input_ids=answered).logits[0, -2:].log_softmax(-1)  # [2, V]
        losses.append(-(rows[0, letter] + rows[1, tokenizer.eos_token_id]) / 2)
    return torch.stack(losses).mean()


# --- scores --------------------------------------------------------------------------------------


def test_scores_equal_the_plain_way(any_ranker, samples):
    randomise_adapter(any_ranker.model)
    histories, candidates, _ = samples
    scores = rank_all(any_ranker, histories, candidates, budget_of(900))
    with torch.no_grad():
        expected = torch.stack(
            [
                reference_logits(any_ranker, h, c).log_softmax(-1)
                for h, c in zip(histories, candidates, strict=True)
            ]
        )
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(histories)))


def test_scores_and_the_next_token_loss_are_of_the_models_scaled_logits(tiny_llama, samples):
    parts = parts_of(tiny_llama)
    scale_logits(parts.model, 3.0)
    ranker = Letters.build(parts)
    encoded = encoded_of(ranker, samples)
    with torch.no_grad():
        rows = zip(*samples[:2], strict=True)
        expected = torch.stack([reference_logits(ranker, *row) for row in rows])
        torch.testing.assert_close(ranker.scores(encoded), expected, atol=1e-4, rtol=1e-4)
        loss = ranker.losses["next_token"](ranker, encoded, one_hot(samples[2], K)).mean()
        torch.testing.assert_close(loss, reference_next_token(ranker, samples))


def test_what_is_encoded_is_the_prompt_and_what_it_costs(any_ranker, samples):
    entered = []
    decoder = any_ranker.model.get_base_model().get_decoder()
    decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: entered.append(inputs[0].shape[:-1].numel())
    )
    for encoded, history, pool in zip(encoded_of(any_ranker, samples), *samples[:2], strict=True):
        text = any_ranker.prompts.text(history, pool)
        assert encoded.context == any_ranker.prompts.tokenizer(text).input_ids == encoded.tokens
        assert (encoded.continuations, encoded.n_candidates) == ([], K)
        assert encoded.n_history == min(len(history), 20)
        entered.clear()
        with torch.no_grad():
            any_ranker.scores([encoded])
        assert entered == [encoded.n_tokens]


def test_a_history_counts_as_it_is_shown(tiny_llama):
    whole = Letters.build(parts_of(tiny_llama, prompt_max_history=30))
    history, pool = list(range(1, 31)), list(range(31, 38))
    assert whole.encode(history, pool).n_history == 30
    limit = whole.encode(history, pool).n_tokens - 1
    short = Letters.build(parts_of(tiny_llama, prompt_max_history=30, prompt_max_tokens=limit))
    assert short.encode(history, pool).n_history == 29
    assert short.encode(history, pool).n_tokens <= limit


def test_a_place_is_left_for_the_label_within_the_models_positions(tiny_llama):
    parts = parts_of(tiny_llama, prompt_max_history=50)
    parts.model.get_base_model().config.max_position_embeddings = 300
    ranker = Letters.build(parts)
    assert ranker.encode(list(range(1, 44)), list(range(44, 51))).n_tokens <= 299
    assert ranker.prompts.n_shortened == 1


def test_the_next_token_loss_needs_a_place_more_than_the_prompt(tiny_llama):
    with pytest.raises(ValueError, match="prompt_max_tokens: 2048 .* positions, 1 of them behind"):
        Letters.build(parts_of(tiny_llama, prompt_max_tokens=2048, train_loss="next_token"))


def test_neither_ranking_nor_the_label_loss_calls_the_whole_head(ranker, samples):
    head = ranker.model.get_base_model().lm_head
    head.register_forward_hook(lambda *_: pytest.fail("the whole head was computed"))
    rank_all(ranker, *samples[:2], budget_of(900))
    gradient_of(ranker, encoded_of(ranker, samples), one_hot(samples[2], K), "label")


def test_labels_come_from_the_number_of_candidates_or_from_the_settings(tiny_llama):
    assert Letters.build(parts_of(tiny_llama)).verbalizer.labels == default_labels(K)
    named = Letters.build(parts_of(tiny_llama, verbalizer_labels=("a", "b", "c")))
    assert named.verbalizer.labels == ("a", "b", "c")
    assert named.max_candidates == 3
    with pytest.raises(ValueError, match="There are 4 candidates: there must be 2 to 3"):
        named.encode([1], [2, 3, 4, 5])


def test_a_catalogue_smaller_than_the_candidates_is_read(tiny_llama):
    parts = parts_of(tiny_llama, rerank_candidates=20)
    few = type(parts)(parts.model, parts.tokenizer, parts.forward, parts.texts[:4], parts.settings)
    assert Letters.build(few).scores([Letters.build(few).encode([1], [2, 3])]).shape == (1, 2)


# --- losses --------------------------------------------------------------------------------------


def test_the_first_loss_is_the_default(ranker):
    assert list(ranker.losses) == ["label", "next_token"]
    assert all(loss.reads_candidates for loss in ranker.losses.values())


def test_the_label_loss_and_its_gradient_equal_the_plain_way(any_ranker, samples):
    ranker = any_ranker
    randomise_adapter(ranker.model)
    histories, candidates, labels = samples
    rows = zip(histories, candidates, strict=True)
    logits = torch.stack([reference_logits(ranker, h, c) for h, c in rows])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    gradients = torch.autograd.grad(expected, trainable(ranker.model))
    loss = gradient_of(ranker, encoded_of(ranker, samples), one_hot(labels, K), "label", 700)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    for weight, gradient in zip(trainable(ranker.model), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_the_label_loss_of_one_target_is_that_of_its_place(ranker, samples):
    encoded, labels = encoded_of(ranker, samples), samples[2]
    with torch.no_grad():
        scores = ranker.scores(encoded)
        expected = torch.nn.functional.cross_entropy(scores, torch.tensor(labels), reduction="none")
        found = ranker.losses["label"](ranker, encoded, one_hot(labels, K).double())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_the_label_loss_takes_shares(ranker, samples):
    encoded = encoded_of(ranker, samples)
    shares = torch.rand(len(encoded), K, generator=torch.manual_seed(0)).softmax(1)
    with torch.no_grad():
        expected = -(shares * ranker.scores(encoded).log_softmax(1)).sum(1)
        torch.testing.assert_close(ranker.losses["label"](ranker, encoded, shares), expected)


def test_the_next_token_loss_and_its_gradient_equal_the_plain_way(any_ranker, samples):
    ranker = any_ranker
    randomise_adapter(ranker.model)
    expected = reference_next_token(ranker, samples)
    gradients = torch.autograd.grad(expected, trainable(ranker.model))
    targets = one_hot(samples[2], K)
    loss = gradient_of(ranker, encoded_of(ranker, samples), targets, "next_token", 700)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    for weight, gradient in zip(trainable(ranker.model), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_the_next_token_loss_reads_each_prompt_once(tiny_llama, samples):
    ranker = Letters.build(parts_of(tiny_llama, "padded"))
    encoded = encoded_of(ranker, samples)
    passes = []
    decoder = ranker.model.get_base_model().get_decoder()
    decoder.register_forward_pre_hook(
        lambda _, __, named: passes.append(named["input_ids"].shape), with_kwargs=True
    )
    ranker.losses["next_token"](ranker, encoded, one_hot(samples[2], K))
    assert passes == [(len(encoded), max(len(own.context) for own in encoded) + 1)]


def test_next_token_needs_an_end_token(ranker, samples):
    ranker.prompts.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set train_loss to label"):
        ranker.losses["next_token"](ranker, encoded_of(ranker, samples), one_hot(samples[2], K))


@pytest.mark.parametrize("loss", ["label", "next_token"])
def test_tuning_learns_and_touches_the_adapter_alone(ranker, samples, loss):
    frozen = {n: p.clone() for n, p in ranker.model.named_parameters() if not p.requires_grad}
    before = adapter_state(ranker.model)
    losses = tuned(ranker, [encoded_of(ranker, samples)] * 25, one_hot(samples[2], K), loss, 3e-2)
    assert losses[-1] < losses[0] - 0.3
    after = adapter_state(ranker.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, weight in ranker.model.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name])


# --- the official code's prompt ------------------------------------------------------------------


def test_the_papers_prompt_is_ranked(tiny_llama, samples):
    ranker = Letters.build(parts_of(tiny_llama, prompt=PAPER))
    histories, candidates, _ = samples
    text = ranker.prompts.text([1, 2], [3, 4, 5])
    assert text.startswith("### Instruction:\nGiven user history")
    first, second = ranker.prompts.titles[1:3]
    assert f"\n\n### Input:\nUser history: (1) {first} \n (2) {second}; \n Candidate" in text
    assert text.endswith("\n\n### Response:\n")
    scores = rank_all(ranker, histories, candidates, budget_of(900))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for row, (history, pool) in enumerate(zip(histories, candidates, strict=True)):
        prompt = ranker.prompts.text(history, pool)
        ids = tokenizer(prompt).input_ids
        labels = [tokenizer(prompt + label).input_ids for label in default_labels(K)]
        assert all(label[:-1] == ids for label in labels)
        with torch.no_grad():
            logits = ranker.model(input_ids=torch.tensor([ids])).logits[0, -1]
        expected = logits[[label[-1] for label in labels]].log_softmax(-1)
        torch.testing.assert_close(scores[row], expected, atol=1e-4, rtol=1e-4)
