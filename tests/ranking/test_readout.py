"""The ranker by read-out against the plain way: each candidate's text, with all logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prompt_texts import BEFORE
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

from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.ranking.readout import Readout

K = 7
WITHOUT_LABELS = PromptTemplate(
    text="History: {history} |\nNext: {candidates} |",
    history_item="{title}",
    candidate_item="{title}",
    separator=" | ",
)
WORDINGS = {"default": PromptTemplate(), "without labels": WITHOUT_LABELS}


@pytest.fixture(params=WAYS)
def any_ranker(request, tiny_llama) -> Readout:
    return Readout.build(parts_of(tiny_llama, request.param, prompt=WITHOUT_LABELS))


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    orders = [generator.permutation(np.arange(1, 51)).tolist() for _ in range(9)]
    return [order[: 3 * place] for place, order in enumerate(orders)], [o[-K:] for o in orders]


def reference(ranker: Readout, history, items) -> torch.Tensor:
    """Log-odds behind each candidate: the prompt's text is cut where the next title begins."""
    encode, text = ranker.prompts.tokenizer, ranker.prompts.text(history, items)
    yes, no = (encode(f"{text} {word}").input_ids[-1] for word in ("yes", "no"))
    scores, ends = [], [len(text)]
    for item in reversed(items[1:]):  # titles are distinct, but may be in the history too
        ends.append(text.rindex(ranker.prompts.titles[item], 0, ends[-1]))
    for end in reversed(ends):
        ids = torch.tensor([encode(text[:end].rstrip()).input_ids])
        logits = ranker.model(input_ids=ids).logits[0, -1]  # [V]
        scores.append(logits[yes] - logits[no])
    return torch.stack(scores)  # [K]


def test_scores_equal_the_plain_way(any_ranker, samples):
    randomise_adapter(any_ranker.model)
    with torch.no_grad():
        rows = [reference(any_ranker, *row) for row in zip(*samples, strict=True)]
    scores = rank_all(any_ranker, *samples, budget_of(900))
    expected = torch.stack(rows).log_softmax(-1)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert scores.std(1).min() > 1e-3


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_candidate_is_read_where_its_text_ends(tiny_llama, samples, wording):
    ranker = Readout.build(parts_of(tiny_llama, prompt=WORDINGS[wording], prompt_max_history=4))
    decode, titles = ranker.prompts.tokenizer.decode, ranker.prompts.titles
    between = ranker.prompts.template.separator.strip()
    for history, items in zip(*samples, strict=True):
        encoded = ranker.encode(history, items)
        assert (encoded.n_candidates, encoded.n_history) == (K, min(len(history), 4))
        for place, item in zip(encoded.places[:-1], items[1:], strict=True):
            behind = decode(encoded.context[place + 1 :]).lstrip().removeprefix(between)
            assert behind.lstrip().startswith(titles[item])
        assert encoded.places[-1] == len(encoded.context) - 1


def test_where_labels_stand_first_a_candidate_is_read_at_the_end_of_its_title(tiny_llama, samples):
    ranker = Readout.build(parts_of(tiny_llama, prompt=BEFORE))
    decode, titles = ranker.prompts.tokenizer.decode, ranker.prompts.titles
    for history, items in zip(*samples, strict=True):
        encoded = ranker.encode(history, items)
        for place, item in zip(encoded.places[:-1], items[:-1], strict=True):
            assert decode(encoded.context[: place + 1]).endswith(titles[item])
        assert encoded.places[-1] == len(encoded.context) - 1


def test_candidates_without_labels_may_be_more_than_there_are_letters(tiny_llama):
    ranker = Readout.build(parts_of(tiny_llama, prompt=WITHOUT_LABELS, rerank_candidates=60))
    assert ranker.max_candidates == 60
    assert len(ranker.encode([], range(1, 51)).places) == 50


def test_scores_are_of_the_models_scaled_logits(tiny_llama, samples):
    parts = parts_of(tiny_llama, prompt=WITHOUT_LABELS)
    scale_logits(parts.model, 3.0)
    ranker = Readout.build(parts)
    rows = list(zip(*samples, strict=True))
    with torch.no_grad():
        scores = ranker.scores([ranker.encode(*row) for row in rows])
        expected = torch.stack([reference(ranker, *row) for row in rows])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_adapter_whatever_the_passes(any_ranker, samples):
    ranker = any_ranker
    randomise_adapter(ranker.model)
    encoded = [ranker.encode(*row) for row in zip(*samples, strict=True)]
    targets = torch.full((len(encoded), K), 1 / K)
    losses, gradients = [], []
    for tokens in (300, 4000):
        losses.append(gradient_of(ranker, encoded, targets, "label", tokens))
        gradients.append([weight.grad.clone() for weight in trainable(ranker.model)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert max(weight.abs().max() for weight in gradients[0]) > 1e-4


def test_it_learns_which_titles_are_wanted(tiny_llama):
    """From one title among others in each sample, wherever it stands."""
    lora = {"r": 8, "target_modules": ("q_proj", "v_proj", "up_proj", "down_proj")}
    ranker = Readout.build(parts_of(tiny_llama, lora=lora, prompt=WITHOUT_LABELS))
    generator = np.random.default_rng(0)
    places = generator.integers(0, 3, 8)
    batches = []
    for _ in range(25):
        pools = [generator.permutation(np.arange(2, 51))[:3] for _ in places]
        for pool, place in zip(pools, places, strict=True):
            pool[place] = 1
        batches.append([ranker.encode([], pool.tolist()) for pool in pools])
    losses = tuned(ranker, batches, one_hot(places, 3), "label", learning_rate=1e-2)
    assert losses[0] == pytest.approx(np.log(3), abs=0.3)
    assert np.mean(losses[-5:]) < 0.6


def test_a_tokenizer_that_ends_both_answers_alike_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.ranking.readout.ANSWERS", (" so", " no so"))
    with pytest.raises(ValueError, match="ranking_method: readout compares"):
        Readout.build(parts_of(tiny_llama))
