"""Ranking by likelihood against the plain way: whole texts, one at a time, through the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from rankers import (
    WAYS,
    budget_of,
    gradient_of,
    parts_of,
    randomise_adapter,
    scale_logits,
    trainable,
    tuned,
)

from recbole_llamarec.ranking.likelihood import Likelihood
from recbole_llamarec.ranking.model.batching import pass_tokens
from recbole_llamarec.ranking.model.head import output_head
from recbole_llamarec.ranking.rank import rank_all

K = 6
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def ranker(tiny_llama) -> Likelihood:
    return Likelihood.build(parts_of(tiny_llama))


@pytest.fixture(params=WAYS)
def any_ranker(request, tiny_llama) -> Likelihood:
    return Likelihood.build(parts_of(tiny_llama, request.param))


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    orders = [generator.permutation(np.arange(1, 51)).tolist() for _ in range(9)]
    histories = [order[: int(generator.integers(0, 25))] for order in orders]
    return histories, [order[-K:] for order in orders]


def encoded_of(ranker: Likelihood, samples) -> list:
    return [ranker.encode(*row) for row in zip(*samples, strict=True)]


def reference(ranker: Likelihood, history, items) -> torch.Tensor:
    """Log-likelihood of consecutive titles: all logits of the text, among the titles' tokens."""
    prompts = ranker.prompts
    text = prompts.text(history, items).replace("\n", "")
    before = prompts.text(history, [])
    encode = prompts.tokenizer
    ids, start = encode(text)["input_ids"], len(encode(before)["input_ids"])
    logits = ranker.model(input_ids=torch.tensor([ids])).logits[0]  # [T, V]
    outside = torch.ones(logits.shape[1], dtype=torch.bool)
    outside[prompts.token_ids] = False
    known = logits.masked_fill(outside, -torch.inf).log_softmax(-1)
    return known[range(start - 1, len(ids) - 1), ids[start:]].sum()


def references(ranker: Likelihood, samples) -> torch.Tensor:
    rows = [[reference(ranker, h, [i]) for i in pool] for h, pool in zip(*samples, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])  # [B, K]


# --- scores --------------------------------------------------------------------------------------


def test_scores_equal_the_plain_way(any_ranker, samples):
    randomise_adapter(any_ranker.model)
    with torch.no_grad():
        expected = references(any_ranker, samples).log_softmax(-1)
    scores = rank_all(any_ranker, *samples, budget_of(300))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert scores.std(1).min() > 0.01


def test_probabilities_are_those_of_the_models_scaled_logits(tiny_llama, samples):
    parts = parts_of(tiny_llama)
    scale_logits(parts.model, 3.0)
    ranker = Likelihood.build(parts)
    with torch.no_grad():
        expected = references(ranker, samples).log_softmax(-1)
    scores = rank_all(ranker, *samples, budget_of(300))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_what_is_encoded_is_context_and_titles_and_what_they_cost(any_ranker, samples):
    entered = []
    decoder = any_ranker.model.get_base_model().get_decoder()
    decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: entered.append(inputs[0].shape[:-1].numel())
    )
    encode = any_ranker.prompts.tokenizer
    for encoded, history, pool in zip(encoded_of(any_ranker, samples), *samples, strict=True):
        context, *titles = any_ranker.prompts.text(history, pool).split("\n")
        assert encoded.context == encode(context).input_ids
        for title, ids in zip(titles, encoded.continuations, strict=True):
            assert encoded.context + ids == encode(context + title).input_ids
        assert encoded.tokens == encoded.context + sum(encoded.continuations, [])
        assert (encoded.n_candidates, encoded.n_history) == (K, min(len(history), 20))
        entered.clear()
        with torch.no_grad():
            any_ranker.scores([encoded])
        assert sum(entered) == encoded.n_tokens


@pytest.mark.parametrize("tokens", [300, 900])
def test_a_pass_computes_no_more_tokens_than_the_budget_counts(any_ranker, samples, tokens):
    """Where the longest history and the longest titles are of different users, too."""
    decoder, entered = any_ranker.model.get_base_model().get_decoder(), []
    decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: entered.append(inputs[0].shape[:-1].numel())
    )
    encoded = encoded_of(any_ranker, samples)
    batches = budget_of(tokens).batches(encoded)
    assert sorted(np.concatenate(batches)) == list(range(len(encoded))) and len(batches) > 1
    for rows in batches:
        batch = [encoded[row] for row in rows]
        counted = pass_tokens(batch, share=False)
        assert counted <= tokens or len(batch) == 1
        entered.clear()
        with torch.no_grad():
            any_ranker.scores(batch)
        if any_ranker.shares_beginnings:  # no padding is computed
            assert 0.5 * counted < sum(entered) <= counted
        else:
            assert sum(entered) == counted


def test_the_history_is_computed_once_for_all_candidates(tiny_llama, samples):
    packed, cached, padded = (
        sum(own.n_tokens for own in encoded_of(Likelihood.build(parts_of(tiny_llama, w)), samples))
        for w in WAYS
    )
    assert packed <= cached < 0.5 * padded


def test_the_order_in_which_candidates_are_given_does_not_change_their_scores(ranker, samples):
    histories, candidates = samples
    scores = rank_all(ranker, histories, candidates, budget_of(300))
    turned = rank_all(ranker, histories, [pool[::-1] for pool in candidates], budget_of(300))
    torch.testing.assert_close(scores, turned.flip(1), atol=1e-5, rtol=1e-5)


def test_a_title_of_one_token_is_read_off_the_history(any_ranker):
    heading = any_ranker.prompts.start
    with torch.no_grad():
        logits = any_ranker.model(input_ids=torch.tensor([heading])).logits[0, -1]
        tokens = any_ranker.prompts.token_ids
        expected = logits[tokens].log_softmax(-1)[:2]
        titles = [[[tokens[0]], [tokens[1]]]]
        found = any_ranker.log_likelihoods([heading], titles)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_rows_of_the_head_are_gathered_once_and_again_for_other_tokens(ranker, samples):
    rank_all(ranker, *samples, budget_of(300))
    head = ranker._title_head(torch.device("cpu"))
    rank_all(ranker, *samples, budget_of(300))
    assert ranker._title_head(torch.device("cpu")) is head
    with ranker.prompts.with_titles(["Zebra & quartz (1999)"]) as (added,):
        assert rank_all(ranker, [[1]], [[2, added]], budget_of(300)).isfinite().all()
        assert len(ranker._title_head(torch.device("cpu")).token_ids) > len(head.token_ids)


# --- priors --------------------------------------------------------------------------------------


def test_a_share_of_each_titles_prior_is_subtracted(any_ranker, samples):
    """By the plain way, and by the model without its adapter."""
    ranker = any_ranker
    randomise_adapter(ranker.model)
    with torch.no_grad():
        likelihoods = references(ranker, samples)
        with ranker.model.disable_adapter():
            priors = references(ranker, ([[]] * len(samples[1]), samples[1]))
    ranker.prior_share, ranker.temperature = 0.5, 3.0
    expected = ((likelihoods - 0.5 * priors) / 3.0).log_softmax(-1)
    scores = rank_all(ranker, *samples, budget_of(300))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    ranker.prior_share = 0.0
    assert (rank_all(ranker, *samples, budget_of(300)) - scores).abs().max() > 0.01


def test_priors_are_computed_once_and_again_for_other_tokens(ranker, monkeypatch):
    titles_read = []
    plain = ranker.log_likelihoods

    def recorded(contexts, titles):
        titles_read.extend(title for own in titles for title in own)
        return plain(contexts, titles)

    monkeypatch.setattr(ranker, "log_likelihoods", recorded)
    titles_of = ranker.encode([], [1, 2, 1]).continuations
    first = ranker.priors(titles_of)
    assert torch.equal(ranker.priors(titles_of), first) and first[0] == first[2]
    assert len(titles_read) == 2
    with ranker.prompts.with_titles(["Zebra & quartz (1999)"]) as (added,):
        others = ranker.encode([], [1, added]).continuations
        assert ranker.priors(others)[0] != first[0]  # among more tokens
    torch.testing.assert_close(ranker.priors(titles_of), first)


def test_a_prior_has_the_same_bits_whichever_titles_come_with_it(tiny_llama):
    titles = Likelihood.build(parts_of(tiny_llama)).encode([], range(1, 20)).continuations
    together = Likelihood.build(parts_of(tiny_llama)).priors(titles)
    assert torch.equal(Likelihood.build(parts_of(tiny_llama)).priors(titles[7:9]), together[7:9])


@pytest.mark.parametrize("is_training", [True, False])
def test_priors_leave_the_model_as_it_was_with_its_adapter(ranker, is_training):
    ranker.model.train(is_training)
    ranker.priors([[5, 6]])
    assert ranker.model.training == is_training
    assert any(weight.requires_grad for weight in ranker.model.parameters())
    layers = [layer for layer in ranker.model.modules() if isinstance(layer, LoraLayer)]
    assert layers and not any(layer.disable_adapters for layer in layers)


def test_the_model_goes_on_training_where_memory_runs_out_for_a_prior(ranker, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ranker, "log_likelihoods", full)
    ranker.model.train()
    with pytest.raises(torch.OutOfMemoryError):
        ranker.priors([[5, 6]])
    assert ranker.model.training


# --- losses --------------------------------------------------------------------------------------


def test_the_first_loss_is_the_default(ranker):
    assert list(ranker.losses) == ["label", "titles"]
    assert ranker.losses["label"].reads_candidates
    assert not ranker.losses["titles"].reads_candidates


def test_the_label_loss_and_its_gradient_equal_the_plain_way(any_ranker, samples):
    randomise_adapter(any_ranker.model)
    encoded = encoded_of(any_ranker, samples)
    shares = torch.rand(len(encoded), K, generator=torch.manual_seed(0)).softmax(1)
    expected = -(shares * references(any_ranker, samples).log_softmax(-1)).sum(1).mean()
    gradients = torch.autograd.grad(expected, trainable(any_ranker.model))
    loss = gradient_of(any_ranker, encoded, shares, "label", 300)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    for weight, gradient in zip(trainable(any_ranker.model), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_the_titles_loss_and_its_gradient_equal_the_plain_way(any_ranker, samples):
    """Each shown title of the history and the target, behind what stands before it."""
    randomise_adapter(any_ranker.model)
    pairs = [(history, [pool[0]]) for history, pool in zip(*samples, strict=True)]
    expected = torch.stack(
        [
            -reference(any_ranker, [], [*history[-20:], *target]) / (len(history[-20:]) + 1)
            for history, target in pairs
        ]
    ).mean()
    gradients = torch.autograd.grad(expected, trainable(any_ranker.model))
    encoded = [any_ranker.encode(*pair) for pair in pairs]
    loss = gradient_of(any_ranker, encoded, torch.ones(len(encoded), 1), "titles", 300)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    for weight, gradient in zip(trainable(any_ranker.model), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_the_titles_loss_costs_what_is_counted(any_ranker):
    entered = []
    decoder = any_ranker.model.get_base_model().get_decoder()
    decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: entered.append(inputs[0].shape[:-1].numel())
    )
    encoded = any_ranker.encode(range(1, 12), [20])
    any_ranker.losses["titles"](any_ranker, [encoded], torch.ones(1, 1))
    assert entered == [encoded.n_tokens]


def test_tuning_raises_the_titles_that_are_chosen(tiny_llama):
    lora = {"r": 32, "alpha": 64, "target_modules": ALL_LINEAR}
    ranker = Likelihood.build(parts_of(tiny_llama, lora=lora))
    output_head(ranker.model).weight.data *= 20  # random rows are too short to be sure of anything
    generator = np.random.default_rng(1)
    batches = []
    for _ in range(25):
        chosen = [(1 + generator.permutation(12)[:8]).tolist() for _ in range(8)]
        batches.append([ranker.encode(items[:-1], items[-1:]) for items in chosen])
    losses = tuned(ranker, batches, torch.ones(8, 1), "titles", 1e-2)
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    never = list(range(31, 43))
    pools = [[*never, *range(1, 13)]] * 3
    scores = rank_all(ranker, [[1, 2], [5], []], pools, budget_of(300))
    assert (scores[:, 12:].min(1).values > scores[:, :12].max(1).values).all()


def test_sequences_with_a_common_beginning_keep_their_own_gradients(tiny_llama):
    """What they share is computed once when packed, and must count for each."""
    gradients = []
    for way in WAYS:
        ranker = Likelihood.build(parts_of(tiny_llama, way))
        encoded = [ranker.encode(range(1, 15), [target]) for target in (20, 21, 22)]
        gradient_of(ranker, encoded, torch.ones(3, 1), "titles", 5000)
        gradients.append([weight.grad for weight in trainable(ranker.model)])
    for others in gradients[1:]:
        for weight, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(weight, other, atol=1e-5, rtol=1e-4)


# --- items ---------------------------------------------------------------------------------------


def test_items_that_do_not_exist_are_named(ranker):
    with pytest.raises(ValueError, match="Item id 0 has no title"):
        rank_all(ranker, [[1]], [[0, 2]], budget_of(300))


def test_a_new_title_is_ranked_with_tokens_of_its_own_and_forgotten(ranker):
    prompts = ranker.prompts
    before = list(prompts.titles), prompts.token_ids
    text = "Zzyzx Qrxw 77!"
    with prompts.with_titles([text, "Another", text]) as (new, other, again):
        assert new == again != other
        assert set(prompts.token_ids) > set(before[1])
        scores = rank_all(ranker, [[1, 2]], [[3, new, other]], budget_of(300))
        assert torch.isfinite(scores).all()
    assert (prompts.titles, prompts.token_ids) == before
    with pytest.raises(ValueError, match="has no title"):
        rank_all(ranker, [[1]], [[3, new]], budget_of(300))


def test_a_history_is_cut_to_what_is_shown_and_to_the_models_positions(tiny_llama):
    parts = parts_of(tiny_llama, prompt_max_history=3)
    encoded = Likelihood.build(parts).encode(range(1, 11), [20])
    assert encoded == Likelihood.build(parts).encode(range(8, 11), [20])
    assert encoded.n_history == 3
    parts = parts_of(tiny_llama, prompt_max_history=50)
    parts.model.get_base_model().config.max_position_embeddings = 100
    ranker = Likelihood.build(parts)
    assert len(ranker.encode(range(1, 50), [50]).tokens) <= 100
    assert ranker.prompts.n_shortened == 1
