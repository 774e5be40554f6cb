"""Generated lists: batched decoding against plain loops, and the reading of what was written."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from helpers import titles
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from recbole_llamarec.ranking.adapter import LoraSettings, add_adapter
from recbole_llamarec.ranking.generation import (
    GENERATE_INSTRUCTION,
    GeneratingRanker,
    pad_left,
)
from recbole_llamarec.ranking.language_model import LanguageModelSettings, load_language_model
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.template import PromptTemplate
from recbole_llamarec.ranking.verbalizer import default_labels
from recbole_llamarec.ranking.written_list import GenerationCounts, parse_ranking, written_lines

K = 4
FILMS = ["Toy Story (1995)", "Toy Story 2 (1999)", "Heat", "Help!"]
HISTORIES = [[1, 2, 3, 4, 5], [], [6], [7, 8, 9, 10, 11, 12, 13, 14], [15, 16]]
CANDIDATES = [[20, 21, 22, 23], [24, 25, 26, 27], [5, 4, 3, 2], [30, 20, 31, 21], [1, 2, 3, 4]]


@pytest.fixture
def ranker(tiny_llama) -> GeneratingRanker:
    settings = LanguageModelSettings(name_or_path=str(tiny_llama))
    model, tokenizer = load_language_model(settings, torch.device("cpu"))
    template = PromptTemplate(instruction=GENERATE_INSTRUCTION)
    prompts = PromptBuilder(tokenizer, ["", *titles(50)], default_labels(K), template)
    return GeneratingRanker(model, prompts, batch_tokens=1000)


@pytest.fixture
def encoded(ranker) -> list[list[int]]:
    return [ranker.prompts.encode(h, c) for h, c in zip(HISTORIES, CANDIDATES, strict=True)]


def with_random_adapter(ranker: GeneratingRanker) -> None:
    ranker.model = add_adapter(ranker.model, LoraSettings(dropout=0.5), seed=1)
    generator = torch.Generator().manual_seed(3)
    for weight in ranker.model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1


def chain(ranker: GeneratingRanker, start: int, *steps: tuple[int, int]) -> None:
    """Make the model write ``start`` behind any prompt, and a step's second token behind its first.

    Its layers are switched off, so that the last token alone decides on the next one.
    """
    model = ranker.model
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    head.zero_()
    prompt_end = ranker.prompts.encode([1], [2, 3])[-1]
    for before, after in [(prompt_end, start), *steps]:
        head[after] += embedding[before]


def token(ranker: GeneratingRanker, text: str) -> int:
    (token,) = ranker.prompts.tokenizer(text, add_special_tokens=False).input_ids
    return token


def greedy_loop(ranker: GeneratingRanker, prompt: list[int], n_tokens: int) -> str:
    """The argmax of the whole text's logits, token after token, without cache, mask or padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n_tokens):
            ids.append(int(ranker.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == ranker.prompts.tokenizer.eos_token_id:
                ids.pop()
                break
    return ranker.prompts.tokenizer.decode(ids[len(prompt) :])


# --- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_adapter", [False, True])
def test_padded_batches_write_what_the_plain_loop_writes(ranker, encoded, has_adapter):
    if has_adapter:
        with_random_adapter(ranker)
    assert len({len(prompt) for prompt in encoded}) > 2
    budgets = [12, 3, 9, 12, 1]
    written = ranker.write(encoded, budgets, n_lines=K)
    expected = [greedy_loop(ranker, p, n) for p, n in zip(encoded, budgets, strict=True)]
    assert written == ["\n".join(written_lines(text)[:K]) for text in expected]
    assert len(set(written)) > 1


def test_batched_ranks_equal_ranks_one_at_a_time(ranker):
    with_random_adapter(ranker)
    alone = [ranker.rank([h], [c])[0] for h, c in zip(HISTORIES, CANDIDATES, strict=True)]
    one_by_one, ranker.counts = ranker.counts, GenerationCounts()
    torch.testing.assert_close(ranker.rank(HISTORIES, CANDIDATES), torch.stack(alone))
    assert ranker.counts == one_by_one
    assert ranker.counts.lists == len(HISTORIES)


def test_the_ranks_have_the_rankers_form(ranker):
    scores = ranker.rank(HISTORIES, CANDIDATES)
    assert (scores.dtype, scores.shape, scores.device.type) == (torch.float32, (5, K), "cpu")
    for row in scores:
        assert sorted(row.tolist()) == [-3, -2, -1, 0]
    assert ranker.rank([], []).shape == (0, 0)
    assert ranker.device == torch.device("cpu")


def test_a_row_ends_after_its_last_line_and_the_batch_with_it(ranker, encoded):
    line_break, word = token(ranker, "\n"), token(ranker, "a")
    chain(ranker, word, (word, line_break), (line_break, word))
    steps = []
    ranker.model.register_forward_hook(lambda *_: steps.append(1))
    assert ranker.write(encoded, [100] * 5, n_lines=3) == ["a\na\na"] * 5
    assert len(steps) == 6


def test_a_row_ends_at_the_end_of_text_token(ranker, encoded):
    word, end = token(ranker, "a"), ranker.prompts.tokenizer.eos_token_id
    chain(ranker, word, (word, end), (end, word))
    assert ranker.write(encoded, [100] * 5, n_lines=3) == ["a"] * 5


@pytest.mark.parametrize("ends_of_model", [None, [7, 9]])
def test_a_model_that_lists_its_own_end_tokens(ranker, encoded, ends_of_model):
    word = token(ranker, "a")
    chain(ranker, word, (word, 9), (9, 9))
    ranker.model.generation_config.eos_token_id = ends_of_model
    (text,) = ranker.write(encoded[:1], [5], n_lines=3)
    nine = ranker.prompts.tokenizer.decode([9])
    assert text == ("a" if ends_of_model else "a" + 4 * nine)


def test_without_a_number_of_lines_every_token_is_written(ranker, encoded):
    word, end = token(ranker, "a"), ranker.prompts.tokenizer.eos_token_id
    line_break = token(ranker, "\n")
    chain(ranker, word, (word, end), (word, line_break), (line_break, word), (end, word))
    (text,) = ranker.write(encoded[:1], [11], n_lines=None)
    assert text == "a\na\na\na\na\na"


@pytest.mark.parametrize("padding", ["none", "own"])
def test_tokenizers_with_and_without_padding_token(ranker, encoded, padding):
    tokenizer = ranker.prompts.tokenizer
    budgets = [6, 2, 5, 6, 1]
    expected = ranker.write(encoded, budgets, n_lines=K)
    if padding == "own":
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(11)
    else:
        tokenizer.eos_token = None
        ranker.model.generation_config.eos_token_id = None
    assert ranker.write(encoded, budgets, n_lines=K) == expected


def test_the_models_own_generation_config_is_put_aside_without_a_word(ranker, encoded, caplog):
    expected = ranker.write(encoded, [8] * 5, n_lines=K)
    own = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, repetition_penalty=5.0, max_length=40, num_beams=2
    )
    ranker.model.generation_config = own
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)  # it does not hand its records on
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                assert ranker.write(encoded, [8] * 5, n_lines=K) == expected
    finally:
        library.removeHandler(caplog.handler)
    assert not caplog.records
    assert ranker.model.generation_config is own


def test_padding_on_the_left():
    ids, mask = pad_left([[5, 6, 7], [8]], pad=2, device=torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_budget_is_the_list_itself(ranker):
    tokenizer = ranker.prompts.tokenizer
    text = "The Red Day 1\nThe Old House 2\n"
    assert ranker.list_tokens(["The Red Day 1", "The Old House 2"]) == len(
        tokenizer(text).input_ids
    )


# --- from the text to the ranks ------------------------------------------------------------------


class Dictating(torch.nn.Module):
    """A language model that writes given texts, in the place of one that has learnt to rank."""

    def __init__(self, tokenizer, texts: list[str]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = GenerationConfig()
        self.rows = [tokenizer(text).input_ids for text in texts]

    def generate(self, input_ids, generation_config, **_):
        row = self.rows.pop(0)[: generation_config.max_new_tokens]
        return torch.cat([input_ids, torch.tensor([row])], dim=1)


def test_ranks_follow_the_written_list_and_then_the_order_given(ranker):
    shown = ranker.prompts.titles
    texts = [
        f" (A) {shown[23]}\n2. {shown[21].upper()}\n\n{shown[23]}\nThe Godfather",
        "I cannot help with that.",
        "\n".join(f'- "{shown[item]}"' for item in (27, 24, 25, 26)) + f"\n{shown[24]}",
    ]
    ranker.model = Dictating(ranker.prompts.tokenizer, texts)
    ranker.list_tokens = lambda titles: 500
    ranker.batch_tokens = 1
    by_cost = [[1, 2, 3], [6, 7], []]  # the longest prompt comes first
    candidates = [[20, 21, 22, 23], [5, 4, 3, 2], [24, 25, 26, 27]]
    scores = ranker.rank(by_cost, candidates)
    assert scores.tolist() == [[-2, -1, -3, 0], [0, -1, -2, -3], [-1, -2, -3, 0]]
    counts = GenerationCounts(
        lists=3, complete=1, fallback=1, matched=6, omitted=6, unmatched=2, repeated=1
    )
    assert ranker.counts == counts
    assert ranker.counts.summary() == (
        "3 lists generated: 1 complete, 1 without any candidate; 6 of 12 candidates written; "
        "lines: 2 match no candidate, 1 repeat one"
    )


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("Heat", (2,)),
        ("  hEAT .", (2,)),
        ("1. Heat", (2,)),
        ("(C) Heat", (2,)),
        ("C) Heat", (2,)),
        ("3: “Heat”,", (2,)),
        ("- 1. (C) **Heat**", (2,)),
        ("Toy\tStory  (1995)", (0,)),
        ("2. toy story 2 (1999)", (1,)),
        ("help", (3,)),
        ("Toy Storry (1995)", (0,)),  # misspelt
        ("Toy Story 2 (1999", (1,)),  # cut off
        ("Toy Story 3 (1999)", ()),  # another number
        ("Toy Story", ()),
        ("Heat and Dust", ()),
        ("1.", ()),
    ],
)
def test_a_line_is_matched_with_a_title(line, order):
    parsed = parse_ranking(line, FILMS)
    assert parsed.order == order
    assert (parsed.n_unmatched, parsed.n_repeated) == (not order, 0)
    assert parsed.n_omitted == len(FILMS) - len(order)


def test_a_title_that_looks_like_a_list_mark_is_matched_as_it_stands():
    films = ["Days of Summer", "(500) Days of Summer", "M", "8½", "..."]
    assert parse_ranking("(500) Days of Summer\nM\n8½\n...", films).order == (1, 2, 3, 4)
    assert parse_ranking("1. (500) Days of Summer\n2. Days of Summer", films).order == (1, 0)


def test_equal_titles_are_matched_in_order():
    parsed = parse_ranking("Heat\nPsycho\nheat\nHeat", ["Psycho", "Heat", "HEAT"])
    assert parsed.order == (1, 0, 2)
    assert (parsed.n_unmatched, parsed.n_repeated, parsed.n_omitted) == (0, 1, 0)
    assert parsed.complete_order() == [1, 0, 2]


pieces = st.one_of(
    st.text(),
    st.sampled_from([*FILMS, "\n", "1. ", "(A) ", "- ", '"', "heat", "Toy Story 3", " ", "."]),
)


@given(
    text=st.lists(pieces, max_size=20).map("".join),
    films=st.lists(st.one_of(st.sampled_from(FILMS), st.text(max_size=8)), max_size=6),
)
def test_any_text_is_read_and_every_line_and_candidate_is_accounted_for(text, films):
    parsed = parse_ranking(text, films)
    assert len(set(parsed.order)) == len(parsed.order)
    assert set(parsed.order) <= set(range(len(films)))
    assert len(parsed.order) + parsed.n_omitted == len(films)
    n_lines = len(parsed.order) + parsed.n_unmatched + parsed.n_repeated
    assert n_lines == len(written_lines(text))
    assert sorted(parsed.complete_order()) == list(range(len(films)))
    assert parse_ranking(text, films) == parsed
