"""Generated lists: batched decoding against plain loops, and ranks by what was written."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from generation.decoding import pad_left
from generation.generating import INSTRUCTION, WORDING, Generating
from generation.written_list import GenerationCounts, written_lines
from helpers import titles
from transformers import GenerationConfig

from recbole_llamarec.ranking.model.adapter import add_adapter
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.forward import forward_for
from recbole_llamarec.ranking.model.loading import LanguageModelSettings, load_language_model
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.ranking.protocol import RankerParts, ranker_class_of
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.settings import LlamaRecSettings

K = 4
CPU = torch.device("cpu")
HISTORIES = [[1, 2, 3, 4, 5], [], [6], [7, 8, 9, 10, 11, 12, 13, 14], [15, 16]]
CANDIDATES = [[20, 21, 22, 23], [24, 25, 26, 27], [5, 4, 3, 2], [30, 20, 31, 21], [1, 2, 3, 4]]


@pytest.fixture
def ranker(tiny_llama) -> Generating:
    """Built as a run builds it, of a model with packed attention."""
    settings = LanguageModelSettings(name_or_path=str(tiny_llama), dtype="float32")
    model, tokenizer = load_language_model(settings, CPU)
    forward = forward_for(model, "auto", CPU)
    run = LlamaRecSettings(rerank_candidates=K, prompt=WORDING, prompt_max_history=20)
    parts = RankerParts(model, tokenizer, forward, ["", *titles(50)], run)
    return ranker_class_of("generate").build(parts)


@pytest.fixture
def batch(ranker) -> list:
    return [ranker.encode(h, c) for h, c in zip(HISTORIES, CANDIDATES, strict=True)]


@pytest.fixture
def encoded(batch) -> list[list[int]]:
    return [one.context for one in batch]


def ranked(ranker: Generating, histories: list, candidates: list) -> torch.Tensor:
    return rank_all(ranker, histories, candidates, TokenBudget(1000, "llm_batch_tokens"))


def with_random_adapter(ranker: Generating) -> None:
    ranker.model = add_adapter(ranker.model, LoraSettings(dropout=0.5), seed=1)
    generator = torch.Generator().manual_seed(3)
    for weight in ranker.model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1


def chain(ranker: Generating, start: int, *steps: tuple[int, int]) -> None:
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


def token(ranker: Generating, text: str) -> int:
    (token,) = ranker.prompts.tokenizer(text, add_special_tokens=False).input_ids
    return token


def greedy_loop(ranker: Generating, prompt: list[int], n_tokens: int) -> str:
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
    pairs = zip(HISTORIES, CANDIDATES, strict=True)
    alone = [ranked(ranker, [history], [items])[0] for history, items in pairs]
    one_by_one, ranker.counts = ranker.counts, GenerationCounts()
    torch.testing.assert_close(ranked(ranker, HISTORIES, CANDIDATES), torch.stack(alone))
    assert ranker.counts == one_by_one
    assert ranker.counts.lists == len(HISTORIES)


def test_scores_are_minus_the_positions(ranker, batch):
    scores = ranker.scores(batch)
    assert (scores.dtype, scores.shape, scores.device) == (torch.float32, (5, K), CPU)
    for row in scores:
        assert sorted(row.tolist()) == [-3, -2, -1, 0]
    torch.testing.assert_close(ranked(ranker, HISTORIES, CANDIDATES), scores.log_softmax(-1))


def test_a_prompt_asks_for_the_list_and_counts_it(ranker, batch):
    assert INSTRUCTION in ranker.prompts.text(HISTORIES[0], CANDIDATES[0])
    for one, items in zip(batch, CANDIDATES, strict=True):
        assert one.titles == [ranker.prompts.titles[item] for item in items]
        assert one.n_tokens == len(one.context) + one.max_new_tokens
    assert ranker.max_candidates == K


def test_a_prompt_leaves_room_for_the_list(ranker):
    assert ranker.prompts.max_prompt_tokens == 2048 - K * 33  # titles of 32 tokens, line breaks


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
    histories, candidates = [[1, 2, 3], [6, 7], []], [[20, 21, 22, 23], [5, 4, 3, 2]]
    candidates += [[24, 25, 26, 27]]
    rows = zip(histories, candidates, strict=True)
    scores = torch.cat([ranker.scores([ranker.encode(*row)]) for row in rows])
    assert scores.tolist() == [[-2, -1, -3, 0], [0, -1, -2, -3], [-1, -2, -3, 0]]
    counts = GenerationCounts(
        lists=3, complete=1, fallback=1, matched=6, omitted=6, unmatched=2, repeated=1
    )
    assert ranker.counts == counts
    assert ranker.counts.summary() == (
        "3 lists generated: 1 complete, 1 without any candidate; 6 of 12 candidates written; "
        "lines: 2 match no candidate, 1 repeat one"
    )
