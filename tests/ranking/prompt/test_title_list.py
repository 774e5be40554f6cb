"""A history as a list of titles: its pieces are the whole text's ids, and it fits its limits."""

from __future__ import annotations

import logging

import pytest
from helpers import titles
from hypothesis import given
from hypothesis import strategies as st
from prompt_texts import QUICK, TITLE

from recbole_llamarec.ranking.prompt.title_list import TitleList

HEADING = "User history:"


def title_list(tokenizer, **limits) -> TitleList:
    return TitleList(tokenizer, ["", *titles(50)], HEADING, 32, **limits)


@QUICK
@given(texts=st.lists(TITLE, min_size=3, max_size=6))
def test_pieces_are_the_whole_texts_ids(tokenizer, texts):
    prompts = TitleList(tokenizer, ["", *texts], HEADING, 32)
    history, last = range(1, len(texts)), len(texts)
    context, (title,), n_shown = prompts.encode(history, [last])
    before, behind = prompts.text(history, [last]).split("\n")
    assert context == tokenizer(before).input_ids
    assert context + title == tokenizer(before + behind).input_ids
    assert n_shown == len(history)


def test_it_reads_as_documented(gpt2_style):
    prompts = TitleList(gpt2_style, ["", "Toy Story", "Heat", ""], HEADING, 32)
    assert prompts.text([1, 2], [3, 1]) == (
        "User history: Toy Story; Heat;\n unknown item;\n Toy Story;"
    )
    assert prompts.text([], []) == HEADING
    assert prompts.encode([], []) == (prompts.start, [], 0)
    assert gpt2_style.decode(prompts.start) == HEADING


def test_a_semicolon_in_a_title_does_not_end_it(gpt2_style):
    prompts = TitleList(gpt2_style, ["", "Steins;Gate; Zero", "Heat"], HEADING, 32)
    assert prompts.text([1, 2], [1]) == (
        "User history: Steins,Gate, Zero; Heat;\n Steins,Gate, Zero;"
    )


def test_the_tokens_are_those_that_titles_have(gpt2_style):
    prompts = title_list(gpt2_style)
    pieces = prompts.encode([], range(1, 51))[1] + prompts.encode([], range(1, 51))[1]
    used = {token for piece in pieces for token in piece}
    assert used <= set(prompts.token_ids)
    assert prompts.token_ids == sorted(set(prompts.token_ids))


def test_a_history_keeps_its_most_recent_titles(gpt2_style):
    prompts = title_list(gpt2_style, max_history=3)
    assert prompts.encode(range(1, 11), [20]) == prompts.encode([8, 9, 10], [20])
    assert prompts.encode(range(1, 11), [20])[2] == 3
    assert prompts.text(range(1, 11), [20]) == prompts.text([8, 9, 10], [20])
    assert title_list(gpt2_style, max_history=0).encode([1, 2], [20])[2] == 0
    assert not prompts.n_shortened  # as it should be, and no fault of the limit


def test_a_long_history_loses_its_oldest_titles_and_says_so(gpt2_style, caplog):
    whole, history = title_list(gpt2_style), list(range(1, 21))
    (context, (title,), _) = whole.encode(history, [30])
    for limit in range(len(whole.start) + len(title), len(context) + len(title) + 1):
        prompts = title_list(gpt2_style, max_tokens=limit)
        shown, _, n_shown = prompts.encode(history, [30])
        fits = [
            n
            for n in range(21)
            if len(whole.encode(history[20 - n :], [30])[0]) + len(title) <= limit
        ]
        assert n_shown == max(fits)
        assert shown == whole.encode(history[20 - n_shown :], [30])[0]
        assert prompts.text(history, [30]) == whole.text(history[20 - n_shown :], [30])
        assert prompts.n_shortened == (n_shown < 20)
    prompts = title_list(gpt2_style, max_tokens=60)
    prompts.encode(history, [30])
    with caplog.at_level(logging.WARNING):
        prompts.report_shortened(since=0)
    assert "1 histories lost their oldest titles" in caplog.text
    caplog.clear()
    prompts.report_shortened(since=1)
    assert not caplog.records
    with pytest.raises(ValueError, match="prompt_max_tokens is 5"):
        title_list(gpt2_style, max_tokens=5).encode([], [1])


def test_items_that_do_not_exist_are_named(gpt2_style):
    prompts = title_list(gpt2_style)
    for history, items, wrong in (([0], [1], 0), ([1], [51], 51), ([1, 2], [3, -1], -1)):
        for method in (prompts.encode, prompts.text):
            with pytest.raises(ValueError, match=f"Item id {wrong} has no title: ids go from 1 to"):
                method(history, items)


def test_new_titles_are_items_within_the_context(gpt2_style):
    prompts = title_list(gpt2_style)
    before = list(prompts.titles), prompts.token_ids
    with prompts.with_titles(["Zzyzx Qrxw 77!", "Another", "Zzyzx Qrxw 77!"]) as (new, other, same):
        assert new == same != other
        assert set(prompts.token_ids) > set(before[1])
        assert prompts.text([1], [new]).endswith("\n Zzyzx Qrxw 77!;")
    assert (prompts.titles, prompts.token_ids) == before
    with pytest.raises(ValueError, match="has no title"):
        prompts.encode([1], [new])


def test_a_title_cannot_end_the_heading_or_hold_line_breaks(gpt2_style):
    prompts = title_list(gpt2_style)
    with prompts.with_titles(["User history: a\nb <|endoftext|>"]) as (added,):
        shown = prompts.titles[added]
    assert "\n" not in shown and "history:" not in shown and "<|endoftext|>" not in shown
