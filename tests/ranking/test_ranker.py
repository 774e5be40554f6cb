"""The ranker against the plain way: full text, one prompt at a time, all logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import titles

from recbole_llamarec.ranking.adapter import LoraSettings, adapter_state, add_adapter
from recbole_llamarec.ranking.language_model import LanguageModelSettings, load_language_model
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.ranking.tuning import tuning_step
from recbole_llamarec.ranking.verbalizer import Verbalizer, default_labels

K = 7


@pytest.fixture
def ranker(tiny_llama) -> Ranker:
    settings = LanguageModelSettings(name_or_path=str(tiny_llama))
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
