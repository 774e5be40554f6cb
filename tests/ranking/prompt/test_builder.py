"""Prompts are put together from pieces whose ids are those of the whole text."""

import logging
import time

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from prompt_texts import (
    BEFORE,
    LABELS,
    N_ITEMS,
    PAPER,
    QUICK,
    TEMPLATE_NAMES,
    TEMPLATES,
    TITLE,
    catalogue,
    shown_items,
)
from tokenizers import models, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from recbole_llamarec.ranking.prompt.builder import PromptBuilder
from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.prompt.title import UNTITLED


@pytest.mark.parametrize("template", TEMPLATES, ids=TEMPLATE_NAMES)
@QUICK
@given(titles=st.lists(TITLE, max_size=12), shown=shown_items(), limit=st.integers(1, 40))
def test_encode_is_the_tokenization_of_the_text(tokenizer, template, titles, shown, limit):
    builder = PromptBuilder(tokenizer, catalogue(titles), LABELS, template, max_title_tokens=limit)
    assert builder.encode(*shown) == tokenizer(builder.text(*shown)).input_ids


def test_a_start_that_is_also_the_separator_stands_once_with_the_start_token(llama):
    template = PromptTemplate(text=" | {history} | {candidates}", separator=" |")
    builder = PromptBuilder(llama, catalogue([]), LABELS, template)
    ids = builder.encode([1, 2], [3, 4])
    assert ids == llama(builder.text([1, 2], [3, 4])).input_ids
    assert ids.count(llama.bos_token_id) == 1


def test_default_prompt_reads_as_documented(gpt2_style):
    builder = PromptBuilder(gpt2_style, ["[PAD]", "Heat", "Alien (1979)", "Fargo"], LABELS)
    assert builder.text([1, 2], [3, 1]) == (
        "History: Heat |Alien (1979)\nCandidates: Fargo (A) |Heat (B)\nNext: ("
    )
    assert builder.text([], [1, 2]).startswith("History: none\nCandidates: Heat (A) |")


def test_history_keeps_the_most_recent_and_numbers_from_one(tokenizer):
    builder = PromptBuilder(tokenizer, catalogue([]), LABELS, BEFORE, max_history=3)
    text = builder.text([1, 2, 3, 4, 5], [6, 7])
    assert "history: (1) Film 3 (1953) (2) Film 4 (1954) (3) Film 5 (1955); " in text
    assert (
        PromptBuilder(tokenizer, catalogue([]), LABELS, max_history=0)
        .text([1], [6, 7])
        .count("Film")
        == 2
    )


def test_long_prompts_lose_their_oldest_history(tokenizer):
    free = PromptBuilder(tokenizer, catalogue([]), LABELS)
    history, candidates = list(range(1, 21)), list(range(30, 50))
    bare, full = len(free.encode([], candidates)), len(free.encode(history, candidates))
    for limit in (bare, (bare + full) // 2, full - 1, full):
        builder = PromptBuilder(tokenizer, catalogue([]), LABELS, max_prompt_tokens=limit)
        ids = builder.encode(history, candidates)
        kept = max(n for n in range(21) if len(free.encode(history[20 - n :], candidates)) <= limit)
        assert len(ids) <= limit
        assert ids == free.encode(history[20 - kept :], candidates)
        assert ids == tokenizer(builder.text(history, candidates)).input_ids
        assert builder.n_shortened == (limit < full)
    builder = PromptBuilder(tokenizer, catalogue([]), LABELS, max_prompt_tokens=bare - 1)
    with pytest.raises(ValueError, match=rf"prompt_max_tokens is {bare - 1}.*needs {bare} tokens"):
        builder.encode(history, candidates)


@QUICK
@given(titles=st.lists(TITLE, min_size=1, max_size=8), limit=st.integers(1, 12))
def test_titles_are_cut_to_the_limit(tokenizer, titles, limit):
    items = catalogue(titles, n_items=10)
    whole = PromptBuilder(tokenizer, items, LABELS, max_title_tokens=10_000)
    cut = PromptBuilder(tokenizer, items, LABELS, max_title_tokens=limit)
    for before, after in zip(whole.titles, cut.titles, strict=True):
        if after == before:
            continue
        assert before.startswith(after) or after == UNTITLED
        assert after == UNTITLED or n_tokens(tokenizer, after) <= limit


def n_tokens(tokenizer, title: str) -> int:
    anchor = tokenizer("x", add_special_tokens=False).input_ids
    return len(tokenizer(f"x {title}", add_special_tokens=False).input_ids) - len(anchor)


def test_title_of_ten_thousand_characters_is_quick(tokenizer):
    titles = ["", "a" * 10_000, "Heat (1) " * 1100, "e\u0301" * 5000, "🎬" * 10_000, "x" * 9]
    start = time.perf_counter()
    builder = PromptBuilder(tokenizer, titles, LABELS, max_title_tokens=32)
    assert time.perf_counter() - start < 10
    assert all(0 < n_tokens(tokenizer, title) <= 32 for title in builder.titles[1:])
    assert set(builder.titles[4]) == {"🎬"}
    ids = builder.encode([1, 2], [3, 4, 5])
    assert ids == tokenizer(builder.text([1, 2], [3, 4, 5])).input_ids


def test_empty_titles_are_shown_as_unknown(tokenizer):
    builder = PromptBuilder(tokenizer, ["", "", " \n", "Heat"], LABELS)
    assert f"Candidates: {UNTITLED} (A) |Heat (B)" in builder.text([1], [2, 3])


def test_wrong_items_are_refused(gpt2_style):
    builder = PromptBuilder(gpt2_style, catalogue([]), LABELS[:5])
    for candidates, message in (
        ([1], "There are 1 candidates: there must be 2 to 5"),
        ([1, 2, 3, 4, 5, 6], "verbalizer_labels"),
        ([1, 2, 1], "hold an item twice"),
        ([0, 1], "Item id 0 has no title"),
        ([1, N_ITEMS + 1], f"Item id {N_ITEMS + 1} has no title"),
    ):
        with pytest.raises(ValueError, match=message):
            builder.encode([1], candidates)
    with pytest.raises(ValueError, match="Item id 0"):
        builder.text([0, 1], [1, 2])
    with pytest.raises(ValueError, match="prompt_max_title_tokens is 0"):
        PromptBuilder(gpt2_style, catalogue([]), LABELS, max_title_tokens=0)


def test_tokenizer_that_appends_a_token_is_refused(llama_folder):
    tokenizer = LlamaTokenizer.from_pretrained(llama_folder, add_eos_token=True)
    with pytest.raises(ValueError, match="add_eos_token=False"):
        PromptBuilder(tokenizer, catalogue([]), LABELS)


def test_tokenizer_that_joins_words_is_warned_about_once(caplog):
    backend = tokenizers.Tokenizer(models.BPE())  # no pre-tokeniser: merges cross spaces
    lines = [" ".join(catalogue([])) + BEFORE.text + BEFORE.instruction + "(A) (B)"]
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    backend.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with caplog.at_level(logging.WARNING):
        builder = PromptBuilder(tokenizer, catalogue([]), LABELS, BEFORE)
    assert len(caplog.records) == 1 and "8 of 8 prompts" in caplog.text
    spelt = "".join(tokenizer.convert_ids_to_tokens(builder.encode([1, 2], [3, 4])))
    assert spelt == builder.text([1, 2], [3, 4])


def test_no_warning_for_piecewise_tokenizers(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        PromptBuilder(tokenizer, catalogue(["a; b", "(B)", "é" * 90]), LABELS)
    assert not caplog.records


def test_encoding_is_quick(tokenizer):
    builder = PromptBuilder(tokenizer, catalogue([]), LABELS)
    history, candidates = list(range(1, 21)), list(range(30, 50))
    builder.encode(history, candidates)
    start = time.perf_counter()
    for _ in range(200):
        builder.encode(history, candidates)
    assert (time.perf_counter() - start) / 200 < 1e-3


def test_no_warning_for_the_papers_prompt(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        builder = PromptBuilder(tokenizer, catalogue([]), LABELS, PAPER)
    assert not caplog.records
    assert builder.text([1], [2, 3]) == (
        "### Instruction:\nGiven user history in chronological order, recommend an item from the "
        "candidate pool with its index letter.\n\n### Input:\nUser history: (1) Film 1 (1951); \n "
        "Candidate pool: (A) Film 2 (1952) \n (B) Film 3 (1953)\n\n### Response:\n"
    )


def test_what_is_shown_of_a_history_is_counted(gpt2_style):
    history, candidates = list(range(1, 21)), list(range(30, 50))
    builder = PromptBuilder(gpt2_style, catalogue([]), LABELS, max_history=6)
    ids, n_shown = builder.encode_shown(history, candidates)
    assert (ids, n_shown) == (builder.encode(history, candidates), 6)
    assert builder.encode_shown(history[:2], candidates)[1] == 2
    builder.max_prompt_tokens = len(ids) - 1
    assert builder.encode_shown(history, candidates)[1] == 5
