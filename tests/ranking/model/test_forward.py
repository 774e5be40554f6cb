import random

import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, tiny_model, with_adapter
from torch import nn

from recbole_llamarec.ranking.model.adapter import base_model
from recbole_llamarec.ranking.model.forward import (
    Packed,
    Padded,
    PrefixCache,
    check_attention,
    forward_for,
)
from recbole_llamarec.ranking.model.packed_attention import packed_states, use_packing
from recbole_llamarec.ranking.model.packing import pack

CPU = torch.device("cpu")
FORWARDS = {"padded": Padded, "packed": Packed, "prefix": PrefixCache}


def tokens(n: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, VOCABULARY), k=n)


CONTEXTS = [tokens(n, n) for n in (31, 3, 50, 31)]
CONTINUATIONS = [
    [tokens(4, 1), tokens(1, 2), [], tokens(9, 3)],
    [tokens(20, 4), tokens(20, 4)],
    [[]],
    [tokens(5, 5)],
]
PLACES = [  # in contexts, at their ends, in continuations, twice, and nowhere
    [[30, 31, 33], [31], [30, 0], [5, 39]],
    [[2, 22, 10], [3]],
    [[49, 7]],
    [[]],
]
EMPTY = [[[]] for _ in CONTEXTS]
ENDS = [[[len(context) - 1]] for context in CONTEXTS]


def build(kind: str, model: nn.Module):
    if kind == "packed":
        assert use_packing(base_model(model))
    return FORWARDS[kind](model)


def plain_states(model: nn.Module, contexts, continuations, places) -> torch.Tensor:
    """By transformers' own forward of each whole prompt alone."""
    states = []
    for context, behind, of_context in zip(contexts, continuations, places, strict=True):
        for own, read in zip(behind, of_context, strict=True):
            input_ids = torch.tensor([[*context, *own]])
            output = model(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                output_hidden_states=True,
            )
            states.append(output.hidden_states[-1][0, read])
    return torch.cat(states)


def entering(forward, model: nn.Module, *batch) -> int:
    """Tokens that enter the decoder, counted where they do."""
    sizes = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda _module, _inputs, options: sizes.append(options["input_ids"].numel()),
        with_kwargs=True,
    )
    with torch.no_grad():
        forward.hidden_at(*batch)
    hook.remove()
    return sum(sizes)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("way", FORWARDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_states_are_those_of_each_whole_prompt_alone(kind, way, adapted):
    model = tiny_model(kind)
    model = with_adapter(model) if adapted else model
    with torch.no_grad():
        expected = plain_states(model, CONTEXTS, CONTINUATIONS, PLACES)
        ends = plain_states(model, CONTEXTS, EMPTY, ENDS)
        forward = build(way, model)
        states = forward.hidden_at(CONTEXTS, CONTINUATIONS, PLACES)
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
        states = forward.hidden_at(CONTEXTS, EMPTY, ENDS)
        torch.testing.assert_close(states, ends, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", FORWARDS)
def test_contexts_of_one_length_need_no_padding(way):
    model = tiny_model("llama")
    contexts = [tokens(20, 8), tokens(20, 9)]
    continuations = [[tokens(3, 1), tokens(3, 2)], [tokens(3, 3), tokens(3, 4)]]
    places = [[[19, 22], [20]], [[19], [0, 22]]]
    with torch.no_grad():
        expected = plain_states(model, contexts, continuations, places)
        forward = build(way, model)
        states = forward.hidden_at(contexts, continuations, places)
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    n_tokens = entering(forward, model, contexts, continuations, places)
    assert n_tokens == sum(forward.cost(contexts, continuations))


@pytest.mark.parametrize("way", FORWARDS)
@pytest.mark.parametrize(
    "behind",
    [[[]], [[], []], [[5, 6, 7]], [[5, 6, 7], [8], [], [9] * 30], [[5], [6]], [[5] * 20] * 3],
    ids=["letters", "all empty", "one", "several", "short", "equal"],
)
@pytest.mark.parametrize("n_context", [3, 40])
def test_the_cost_is_what_enters_the_model(way, behind, n_context):
    model = tiny_model("llama")
    forward = build(way, model)
    context = tokens(n_context, 7)
    places = [[n_context - 1, n_context + len(own) - 1] for own in behind]
    cost = forward.cost([context], [behind])
    assert cost == [entering(forward, model, [context], [behind], [places])]
    if way != "padded" and n_context == 40:
        assert cost[0] <= n_context + len(behind) * max(map(len, behind))


@pytest.mark.parametrize("way", FORWARDS)
def test_without_continuations_a_batch_costs_its_prompts(way):
    model = tiny_model("llama")
    forward = build(way, model)
    contexts = [tokens(25, seed) for seed in range(3)]
    assert forward.cost(contexts, EMPTY[:3]) == [25] * 3
    assert entering(forward, model, contexts, EMPTY[:3], [[[24]]] * 3) == 75


@pytest.mark.parametrize("way", ["packed", "prefix"])
def test_gradients_are_those_of_padded_prompts(way):
    gradients = []
    for kind in ("padded", way):
        model = with_adapter(tiny_model("llama"))
        forward = build(kind, model)
        forward.hidden_at(CONTEXTS, CONTINUATIONS, PLACES).square().mean().backward()
        weights = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert len(weights) == 8 and all(grad.abs().sum() > 0 for grad in weights.values())
        gradients.append(weights)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_packed_prompts_are_one_row_of_all_whole_prompts():
    model = tiny_model("llama")
    forward = build("packed", model)
    whole = [
        [*c, *own] for c, behind in zip(CONTEXTS, CONTINUATIONS, strict=True) for own in behind
    ]
    with torch.no_grad():
        states = forward.hidden_at(CONTEXTS, CONTINUATIONS, PLACES)
        packing = pack(whole)
        row = packed_states(model.get_decoder(), packing)
        flat = [read for of_context in PLACES for read in of_context]
        expected = torch.cat([row[packing.rows(i)[read]] for i, read in enumerate(flat)])
        # the last feed-forward of fewer rows may add up in another order
        torch.testing.assert_close(states, expected, atol=1e-6, rtol=1e-5)
        as_contexts = forward.hidden_at(whole, [[[]]] * len(whole), [[read] for read in flat])
        assert torch.equal(states, as_contexts)


def test_padding_cannot_influence_the_states():
    model = tiny_model("gemma3")
    short, long = tokens(3, 1), tokens(40, 2)
    with torch.no_grad():
        states = [
            Padded(model).hidden_at([short, other], [[[]]] * 2, [[[2]], [[39]]])[0]
            for other in (long, long[::-1])
        ]
    assert torch.equal(states[0], states[1])


def test_unequal_prompts_and_places_are_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="2 prompts, but places for 1"):
        Padded(model).hidden_at([[1, 2]], [[[3], [4]]], [[[2]]])


@pytest.mark.parametrize(
    ("kind", "attention", "expected"),
    [
        ("llama", "auto", Packed),
        ("llama", "packed", Packed),
        ("llama", "sdpa", PrefixCache),
        ("gemma2", "eager", PrefixCache),
        ("gemma3", "auto", Packed),
        ("mamba", "auto", Padded),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_fastest_way_that_works_is_chosen(kind, attention, expected, training):
    model = tiny_model(kind).train(training)
    before = model.config._attn_implementation
    forward = forward_for(model, attention, CPU)
    assert type(forward) is expected
    assert model.training == training
    after = "packed" if expected is Packed else before
    assert model.config._attn_implementation == after


def test_a_feed_forward_that_gives_its_routers_scores_too_is_computed_where_it_is_read():
    model = tiny_model("gpt_oss")
    forward = forward_for(model, "auto", CPU)
    with torch.no_grad():
        expected = plain_states(model, CONTEXTS, CONTINUATIONS, PLACES)
        states = forward.hidden_at(CONTEXTS, CONTINUATIONS, PLACES)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cache_is_recognised_in_half_precision(kind, dtype):
    model = with_adapter(tiny_model(kind, dtype=dtype))
    attention = "eager" if kind == "gemma2" else "sdpa"
    assert type(forward_for(model, attention, CPU)) is PrefixCache


def test_a_cache_that_mixes_contexts_is_not_used():
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn
    plain = layer.forward

    def forgetful(**options):
        return plain(**{**options, "past_key_values": None, "attention_mask": None})

    layer.forward = forgetful
    assert type(forward_for(model, "sdpa", CPU)) is Padded


def test_packed_attention_is_refused_where_it_cannot_be_had():
    with pytest.raises(ValueError, match="llm_attention: packed is for a CPU.*cuda:0"):
        forward_for(tiny_model("llama"), "packed", torch.device("cuda:0"))
    with pytest.raises(ValueError, match="llm_attention: packed: .*does not keep packed prompts"):
        forward_for(tiny_model("mamba"), "packed", CPU)
    check_attention("auto", torch.device("cuda"))
    check_attention("packed", CPU)
