"""Ranking by likelihood against the plain way: whole texts, one at a time, through the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import titles
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from recbole_llamarec.ranking.adapter import LoraSettings, adapter_state, add_adapter
from recbole_llamarec.ranking.language_model import (
    LanguageModelSettings,
    hidden_at,
    load_language_model,
    output_head,
)
from recbole_llamarec.ranking.likelihood import LikelihoodRanker
from recbole_llamarec.ranking.title_list import TitleList
from recbole_llamarec.ranking.tuning import sequence_step

K = 6
HEADING = "User history:"


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def ranker_of(folder, attention: str = "auto", batch_tokens: int = 300, **lora) -> LikelihoodRanker:
    loading = LanguageModelSettings(name_or_path=str(folder), dtype="float32", attention=attention)
    model, tokenizer = load_language_model(loading, torch.device("cpu"))
    model = add_adapter(model, LoraSettings(dropout=0.0, **lora), seed=1)
    return LikelihoodRanker(
        model, TitleList(tokenizer, ["", *titles(50)], HEADING, 32), batch_tokens
    )


@pytest.fixture
def ranker(tiny_llama) -> LikelihoodRanker:
    return ranker_of(tiny_llama)


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    orders = [generator.permutation(np.arange(1, 51)).tolist() for _ in range(9)]
    histories = [order[: int(generator.integers(0, 25))] for order in orders]
    return histories, [order[-K:] for order in orders]


def reference(ranker: LikelihoodRanker, history, candidate) -> float:
    """Log-likelihood of one title: the whole text, all logits, among the tokens of titles."""
    prompts = ranker.prompts
    text = prompts.text(history, [candidate]).replace("\n", "")
    before = prompts.text(history, [])
    encode = prompts.tokenizer
    ids, start = encode(text)["input_ids"], len(encode(before)["input_ids"])
    logits = ranker.model(input_ids=torch.tensor([ids])).logits[0].double()  # [T, V]
    outside = torch.ones(logits.shape[1], dtype=torch.bool)
    outside[prompts.token_ids] = False
    found = logits.masked_fill(outside, -torch.inf).log_softmax(-1)
    return sum(float(found[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_scores_equal_the_plain_way(tiny_llama, samples, attention):
    ranker = ranker_of(tiny_llama, attention)
    histories, candidates = samples
    with torch.no_grad():
        expected = torch.tensor(
            [
                [reference(ranker, history, item) for item in pool]
                for history, pool in zip(histories, candidates, strict=True)
            ]
        ).log_softmax(-1)
    scores = ranker.rank(histories, candidates)
    torch.testing.assert_close(scores, expected.float(), atol=1e-3, rtol=1e-3)
    assert scores.std(1).min() > 0.01


def test_a_share_of_each_titles_prior_is_subtracted(ranker, samples):
    """By the plain way, and by the model without its adapter; each title is computed once."""
    for name, weight in ranker.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.manual_seed(3))
    histories, candidates = samples
    with torch.no_grad():
        likelihoods = torch.tensor(
            [
                [reference(ranker, history, item) for item in pool]
                for history, pool in zip(histories, candidates, strict=True)
            ]
        )
        with ranker.model.disable_adapter():
            priors = torch.tensor([[reference(ranker, [], i) for i in pool] for pool in candidates])
    ranker.prior_share, ranker.temperature = 0.5, 3.0
    expected = ((likelihoods - 0.5 * priors) / 3.0).log_softmax(-1).float()
    scores = ranker.rank(histories, candidates)
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)
    ranker.prior_share = 0.0
    assert (ranker.rank(histories, candidates) - scores).abs().max() > 0.01


def test_priors_are_computed_once_and_again_for_other_tokens(ranker, monkeypatch):
    titles_read = []
    plain = ranker.log_likelihoods

    def recorded(contexts, continuations):
        titles_read.extend(map(tuple, continuations))
        return plain(contexts, continuations)

    monkeypatch.setattr(ranker, "log_likelihoods", recorded)
    _, titles_of = ranker.prompts.encode([], [[1], [2], [1]])
    first = ranker.priors(titles_of)
    assert torch.equal(ranker.priors(titles_of), first) and first[0] == first[2]
    assert len(titles_read) == 2
    with ranker.prompts.with_titles(["Zebra & quartz (1999)"]) as (added,):
        _, others = ranker.prompts.encode([], [[1], [added]])
        assert ranker.priors(others)[0] != first[0]  # among more tokens
    torch.testing.assert_close(ranker.priors(titles_of), first)


def test_priors_leave_the_model_in_training_with_its_adapter(ranker):
    ranker.model.train()
    ranker.priors([[5, 6]])
    assert ranker.model.training
    assert any(weight.requires_grad for weight in ranker.model.parameters())
    layers = [layer for layer in ranker.model.modules() if isinstance(layer, LoraLayer)]
    assert layers and not any(layer.disable_adapters for layer in layers)


def test_the_order_in_which_candidates_are_given_is_no_matter(ranker, samples):
    histories, candidates = samples
    turned = ranker.rank(histories, [pool[::-1] for pool in candidates]).flip(1)
    torch.testing.assert_close(ranker.rank(histories, candidates), turned, atol=1e-5, rtol=1e-5)


def test_tuning_raises_the_titles_that_are_chosen(tiny_llama):
    ranker = ranker_of(tiny_llama, r=32, alpha=64, target_modules=ALL_LINEAR)
    output_head(ranker.model).weight.data *= 20  # random rows are too short to be sure of anything
    generator = np.random.default_rng(1)
    weights = [weight for weight in ranker.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(25):
        chosen = [(1 + generator.permutation(12)[:8]).tolist() for _ in range(8)]
        losses.append(sequence_step(ranker, chosen, optimizer, 400, clip_norm=1.0))
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    never = list(range(31, 43))
    scores = ranker.rank([[1, 2], [5], []], [[*never, *range(1, 13)]] * 3)
    assert (scores[:, 12:].min(1).values > scores[:, :12].max(1).values).all()


def test_micro_batches_give_the_gradient_of_the_whole(tiny_llama):
    sequences = [[3, 9, 4], [5], [3, 9, 4, 7, 8, 1, 2], [11, 12]]
    states, losses = [], []
    for batch_tokens in (5000, 30):
        ranker = ranker_of(tiny_llama)
        weights = [weight for weight in ranker.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=0.5)
        losses.append(sequence_step(ranker, sequences, optimizer, batch_tokens))
        states.append(adapter_state(ranker.model))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], atol=1e-5, rtol=1e-4)


def test_sequences_with_a_common_beginning_keep_their_own_gradients(tiny_llama):
    """What they share is computed once when packed, and must count for each."""
    sequences = [[*range(1, 15), 20], [*range(1, 15), 21], [*range(1, 15), 22]]
    states = []
    for attention in ("packed", "sdpa"):
        ranker = ranker_of(tiny_llama, attention)
        weights = [weight for weight in ranker.model.parameters() if weight.requires_grad]
        sequence_step(ranker, sequences, torch.optim.SGD(weights, lr=0.5), 5000)
        states.append(adapter_state(ranker.model))
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], atol=1e-5, rtol=1e-4)


def test_hidden_at_reads_the_states_of_the_plain_model(tiny_llama):
    model = ranker_of(tiny_llama, "packed").model
    prompts = [[5, 6, 7], list(range(5, 60)), [*range(5, 50), 3], [9]]
    places = [[0, 2], [4, 54], [4, 45, 0], [0]]
    with torch.no_grad():
        found = hidden_at(model, prompts, places)
        decoder = model.get_base_model().get_decoder()
        expected = [
            decoder(input_ids=torch.tensor([prompt])).last_hidden_state[0, own]
            for prompt, own in zip(prompts, places, strict=True)
        ]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_out_of_memory_halves_the_batch(ranker, samples, monkeypatch):
    histories, candidates = samples
    expected = ranker.rank(histories, candidates)
    plain = ranker.log_likelihoods

    def tight(contexts, continuations):
        if len(contexts) > K:
            raise torch.OutOfMemoryError
        return plain(contexts, continuations)

    monkeypatch.setattr(ranker, "log_likelihoods", tight)
    ranker.batch_tokens = 5000
    torch.testing.assert_close(ranker.rank(histories, candidates), expected, atol=1e-5, rtol=1e-5)
    assert ranker.batch_tokens < 5000


# --- texts ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=3, max_size=6))
def test_pieces_are_the_whole_texts_ids(llama_tokenizers, texts):
    for tokenizer in llama_tokenizers:
        prompts = TitleList(tokenizer, ["", *texts], HEADING, 32)
        items = range(1, len(texts) + 1)
        context, (last,) = prompts.encode(items[:-1], [[items[-1]]])
        text = prompts.text(items[:-1], [items[-1]]).replace("\n", "")
        assert tokenizer.decode(context + last) == tokenizer.decode(tokenizer(text).input_ids)


@pytest.fixture(scope="module")
def llama_tokenizers(tiny_llama, llama_folder):
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(folder) for folder in (tiny_llama, llama_folder)]


def test_a_long_history_loses_its_oldest_titles_and_says_so(ranker, caplog):
    tokenizer = ranker.prompts.tokenizer
    prompts = TitleList(tokenizer, ["", *titles(50)], HEADING, 32, max_tokens=60)
    context, (title,) = prompts.encode(range(1, 21), [[30]])
    assert len(context) + len(title) <= 60
    whole, _ = ranker.prompts.encode(range(1, 21), [[30]])
    kept = context[len(whole) - len(ranker.prompts.encode(range(1, 21), [[30]])[0]) :]
    assert whole[-20:] == kept[-20:]
    prompts.report_shortened(since=0)
    assert "1 histories lost their oldest titles" in caplog.text
    with pytest.raises(ValueError, match="prompt_max_tokens is 5"):
        TitleList(tokenizer, ["", *titles(50)], HEADING, 32, max_tokens=5).encode([], [[1]])


def test_items_that_do_not_exist_are_named(ranker):
    with pytest.raises(ValueError, match="Item id 0 has no title"):
        ranker.rank([[1]], [[0, 2]])


def test_a_new_title_is_ranked_with_tokens_of_its_own_and_forgotten(ranker):
    prompts = ranker.prompts
    before = list(prompts.titles), prompts.token_ids
    text = "Zzyzx Qrxw 77!"
    with prompts.with_titles([text, "Another", text]) as (new, other, again):
        assert new == again != other
        assert set(prompts.token_ids) > set(before[1])
        assert torch.isfinite(ranker.rank([[1, 2]], [[3, new, other]])).all()
    assert (prompts.titles, prompts.token_ids) == before
    with pytest.raises(ValueError, match="has no title"):
        ranker.rank([[1]], [[3, new]])


def test_a_title_cannot_end_the_heading_or_hold_line_breaks(ranker):
    with ranker.prompts.with_titles(["User history: a\nb <|endoftext|>"]) as (added,):
        shown = ranker.prompts.titles[added]
    assert "\n" not in shown and "history:" not in shown and "<|endoftext|>" not in shown
