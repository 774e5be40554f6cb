import random
from importlib.util import find_spec

import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, tiny_model

from recbole_llamarec.ranking.model.embedded import embedded_model_is_at_hand
from recbole_llamarec.ranking.model.forward import Packed, Padded, PrefixCache, forward_for
from recbole_llamarec.ranking.model.loading import (
    EMBEDDED,
    LanguageModelSettings,
    load_language_model,
)
from recbole_llamarec.ranking.model.packed_attention import packed_states, use_packing
from recbole_llamarec.ranking.model.packing import MIN_SHARED, pack


def last_states(forward, prompts):
    """States at the last token of prompts, which nothing continues."""
    return forward.hidden_at(
        prompts, [[[]]] * len(prompts), [[[len(prompt) - 1]] for prompt in prompts]
    )


def tokens(n: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, VOCABULARY), k=n)


def many_prompts() -> list[list[int]]:
    """Of very different lengths, with beginnings in common on two levels, some twice."""
    instruction = tokens(MIN_SHARED + 3, seed=1)
    users = [instruction + tokens(length, seed=length) for length in (1, 40, 200)]
    orders = [user + tokens(length, 7 * length) for user in users for length in (1, 25, 90)]
    others = [tokens(1, seed=2), tokens(170, seed=3), instruction[:-2], instruction]
    prompts = [*users, *orders, *others, users[1], orders[4]]
    random.Random(0).shuffle(prompts)
    return prompts


def test_each_token_of_a_row_stands_behind_the_tokens_of_its_own_prompts():
    prompts = many_prompts()
    packing = pack(prompts)
    assert len(packing.input_ids) < 0.6 * sum(map(len, prompts))
    assert [s.start for s in packing.segments[1:]] == [s.stop for s in packing.segments[:-1]]
    assert packing.segments[-1].stop == len(packing.input_ids)
    for prompt, end in zip(prompts, packing.ends.tolist(), strict=True):
        segment = next(s for s in packing.segments if s.start <= end < s.stop)
        seen = [*segment.context, slice(segment.start, end + 1)]
        assert torch.cat([packing.input_ids[part] for part in seen]).tolist() == prompt
        places = torch.cat([packing.position_ids[part] for part in seen])
        assert places.tolist() == list(range(len(prompt)))


def test_a_shared_beginning_is_laid_out_once_and_a_short_one_is_not():
    long, short = tokens(MIN_SHARED, seed=1), tokens(MIN_SHARED - 1, seed=1)
    assert len(pack([[*long, 1, 2], [*long, 3]]).input_ids) == MIN_SHARED + 3
    assert len(pack([[*short, 1, 2], [*short, 3]]).input_ids) == 2 * (MIN_SHARED - 1) + 3


@pytest.mark.parametrize("prompts", [[], [[1, 2], []]])
def test_an_empty_prompt_is_refused(prompts):
    with pytest.raises(ValueError, match="at least one"):
        pack(prompts)


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_states_are_those_of_each_prompt_alone(kind):
    model, prompts = tiny_model(kind), many_prompts()
    with torch.no_grad():
        alone = torch.cat([last_states(Padded(model), [prompt]) for prompt in prompts])
        assert use_packing(model)
        packed = last_states(Packed(model), prompts)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_rounding_lengths_up_changes_no_state(kind):
    model, prompts = tiny_model(kind), many_prompts()
    with torch.no_grad():
        alone = torch.cat([last_states(Padded(model), [prompt]) for prompt in prompts])
        assert use_packing(model)
        packing = pack(prompts, multiple=64)
        states = packed_states(model.get_decoder(), packing)
    assert states.shape[0] == len(packing.input_ids) > packing.segments[-1].stop
    torch.testing.assert_close(states[packing.ends], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype, shapes", [(torch.float32, 8), (torch.bfloat16, 2)])
def test_in_half_precision_products_of_rows_of_other_lengths_have_few_shapes(dtype, shapes):
    """A CPU compiles each product of a new shape, which takes longer than to compute it."""
    model, seen = tiny_model("llama", dtype=dtype), set()
    assert use_packing(model)
    query = model.get_decoder().layers[0].self_attn.q_proj
    query.register_forward_hook(lambda _module, inputs, _output: seen.add(inputs[0].shape))
    with torch.no_grad():
        for length in range(40, 120, 10):
            last_states(Packed(model), [tokens(length, seed=1)])
    assert len(seen) == shapes


def test_packed_gradients_are_those_of_the_padded_prompts():
    model, prompts = tiny_model("llama"), many_prompts()
    gradients = []
    assert use_packing(model)
    for forward in (Padded(model), Packed(model)):
        model.zero_grad()
        last_states(forward, prompts).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 15
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_packing_is_recognised_in_half_precision():
    assert use_packing(tiny_model("llama", dtype=torch.bfloat16))


@pytest.mark.skipif(not embedded_model_is_at_hand(None), reason="the embedded model is not here")
def test_packing_and_contexts_of_the_embedded_model_are_recognised_in_half_precision():
    """Its rounding is the coarser, the more a text surprises it."""
    settings = LanguageModelSettings(name_or_path=EMBEDDED, dtype="bfloat16")
    model, _ = load_language_model(settings, torch.device("cpu"))
    assert isinstance(forward_for(model, "sdpa", torch.device("cpu")), PrefixCache)
    assert isinstance(forward_for(model, "auto", torch.device("cpu")), Packed)


@pytest.mark.skipif(not embedded_model_is_at_hand(None), reason="the embedded model is not here")
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_packing_and_contexts_of_the_embedded_model_are_recognised_in_few_bits(key, caplog):
    """Activations of 8 bits move a state by a tenth of its size."""
    settings = LanguageModelSettings(name_or_path=EMBEDDED, dtype="bfloat16", **{key: True})
    model, _ = load_language_model(settings, torch.device("cpu"))
    assert isinstance(forward_for(model, "sdpa", torch.device("cpu")), PrefixCache)
    assert isinstance(forward_for(model, "packed", torch.device("cpu")), Packed)
    # bitsandbytes has something to say of each product; a processor may be slow in bfloat16
    assert not [told for told in caplog.messages if not told.startswith("llm_dtype: bfloat16: ")]


def ignore_packing(model):
    """Give one layer an attention of its own, which sees the row and not its prompts."""
    attention = model.model.layers[1].self_attn
    plain = attention.forward
    attention.forward = lambda **kwargs: plain(**{**kwargs, "packing": None})


@pytest.mark.parametrize("config", ["mamba", "own attention"])
def test_a_model_that_mixes_the_prompts_is_left_as_it_was(config):
    model = tiny_model("mamba" if config == "mamba" else "llama")
    if config == "own attention":
        ignore_packing(model)
    prompts = [tokens(9, seed=4), tokens(30, seed=5)]
    with torch.no_grad():
        attention, before = model.config._attn_implementation, last_states(Padded(model), prompts)
        assert not use_packing(model)
        assert model.config._attn_implementation == attention
        torch.testing.assert_close(last_states(Padded(model), prompts), before)


def test_an_attention_that_reads_the_mask_of_a_packed_row_is_found_out():
    """Its value must not be left to what the memory holds: some values look like small errors."""
    model = tiny_model("llama")
    assert use_packing(model)
    ignore_packing(model)
    with torch.no_grad():
        states = packed_states(model.get_decoder(), pack([tokens(9, seed=4)]))
    assert states.isnan().all()


def test_without_a_packing_the_attention_is_the_ordinary_one():
    model, prompts = tiny_model("llama"), [tokens(9, seed=4), tokens(30, seed=5)]
    with torch.no_grad():
        before = last_states(Padded(model), prompts)
        assert use_packing(model)
        torch.testing.assert_close(last_states(Padded(model), prompts), before)
