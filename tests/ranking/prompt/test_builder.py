import logging
import re
import time

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from recbole_llamarec.ranking.prompt import PromptBuilder, PromptTemplate
from recbole_llamarec.ranking.title import (
    UNTITLED,
    TitleRules,
    character_boundary,
    clean_title,
    special_texts,
)
from recbole_llamarec.ranking.verbalizer import default_labels

LABELS = default_labels(52)
N_ITEMS = 60
DEFAULT = PromptTemplate()
TEMPLATES = [
    DEFAULT,
    PromptTemplate(
        instruction="Pick  {one}.",
        text="<|im_start|> user\n{instruction}\nSeen so far:\n{history}\nChoices :\n  {candidates}."
        "<|im_end|>\nAnswer:",
        history_item="{title} [{number}]",
        candidate_item="<{label}>  {title}!",
        separator="  |\n ",
        empty_history="",
    ),
    PromptTemplate(
        text="Watched: {history}\nNow {candidates}",
        history_item="{title}",
        candidate_item="{label}: {title}",
    ),
]
TROUBLE = (
    "(B)|( C )|(1)|(12)|(a)|[B]|[7]|<D>E|B:|User history:|Candidate  pool :|### Response:|###|#|"
    "Seen so far:|<|</s>|<s>|<unk>|< s>|(1995)|\u2581|;|:|.|,|\n\n|\r\n|\t|\u2028|\xa0|\u3000|"
    "\u200b|\u0301|\x00|\x85|\x1c|\ud800|\udfff|🎬|👩\u200d👧|👍🏽|\xe9|e\u0301|'|\"|'s|007|1984|Toy"
)
PIECES = st.sampled_from([*TROUBLE.split("|"), "<|im_end|>", "<|endoftext|>"])
TITLE = st.lists(PIECES | st.text(max_size=6) | st.just(" "), max_size=8).map("".join)
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def catalogue(titles: list[str], n_items: int = N_ITEMS) -> list[str]:
    """A list of titles for all ids, with the given ones spread through plain ones."""
    plain = [f"Film {i} ({1950 + i})" for i in range(n_items + 1)]
    for i, title in enumerate(titles):
        plain[1 + i * 7 % n_items] = title
    return plain


def rules_for(template: PromptTemplate, special: list[str] | tuple[str, ...] = ()) -> TitleRules:
    return TitleRules.build(
        template.text, template.history_item, template.candidate_item, LABELS, 20, special
    )


@st.composite
def shown_items(draw):
    history = draw(st.lists(st.integers(1, N_ITEMS), max_size=30))
    n_candidates = draw(st.integers(2, 52))
    return history, draw(st.permutations(range(1, N_ITEMS + 1)))[:n_candidates]


@pytest.mark.parametrize("template", TEMPLATES, ids=["default", "chat", "terse"])
@QUICK
@given(titles=st.lists(TITLE, max_size=12), shown=shown_items(), limit=st.integers(1, 40))
def test_encode_is_the_tokenization_of_the_text(tokenizer, template, titles, shown, limit):
    builder = PromptBuilder(tokenizer, catalogue(titles), LABELS, template, max_title_tokens=limit)
    assert builder.encode(*shown) == tokenizer(builder.text(*shown)).input_ids


def test_default_prompt_reads_as_documented(gpt2_style):
    builder = PromptBuilder(gpt2_style, ["[PAD]", "Heat", "Alien (1979)", "Fargo"], LABELS)
    assert builder.text([1, 2], [3, 1]) == (
        "### Instruction: Given user history in chronological order, recommend an item from the "
        "candidate pool with its index letter.\n\n### Input: User history: (1) Heat (2) Alien "
        "(1979); Candidate pool: (A) Fargo (B) Heat\n\n### Response:"
    )
    assert "User history: none; Candidate pool: (A) Heat (B)" in builder.text([], [1, 2])


def test_history_keeps_the_most_recent_and_numbers_from_one(tokenizer):
    builder = PromptBuilder(tokenizer, catalogue([]), LABELS, max_history=3)
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


@pytest.mark.parametrize(
    ("text", "end", "boundary"),
    [("abc", 2, 2), ("e\u0301a", 1, 0), ("a👍🏽", 2, 1), ("a👩\u200d👧", 3, 1), ("abc", 3, 3)],
)
def test_character_boundary(text, end, boundary):
    assert character_boundary(text, end) == boundary


@pytest.mark.parametrize("template", TEMPLATES, ids=["default", "chat", "terse"])
@settings(max_examples=200, deadline=None)
@given(title=TITLE)
def test_clean_title_is_idempotent_and_leaves_no_structure(llama, gpt2_style, template, title):
    special = special_texts(llama) + special_texts(gpt2_style) + ["[INST]", "< s>", "§"]
    rules = rules_for(template, special)
    cleaned = clean_title(title, rules)
    assert clean_title(cleaned, rules) == cleaned
    assert cleaned == " ".join(cleaned.split())
    assert not any(token in cleaned for token in special)
    assert not any(bad in cleaned for bad in ("##", "▁", "\n", "\x00", "\x85", "\ud800", "\udfff"))
    if template is DEFAULT:
        for heading in ("user history", "candidate pool", "response", "instruction", "input"):
            assert not re.search(rf"(?<!\w){heading} ?:", cleaned.lower())
        squeezed = cleaned.replace("( ", "(").replace(" )", ")")
        markers = [f"({m})" for m in (*LABELS, *range(1, 21))]
        assert not any(marker in squeezed for marker in markers)
    cleaned.encode("utf-8")


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("  a\t\r\n b\u2028c\u2581d\x00 ", "a b c d"),
        ("Plan (B) and ( b ) (20) (21)", "Plan [B] and [ b ] [20] (21)"),
        ("Heat; candidate  POOL : (A) me", "Heat; candidate POOL [A] me"),
        ("User User history:: history:", "User User history history:"),
        ("### Response: (A", "Response (A"),
        ("C# and #1 ##", "C# and #1"),
        ("a<|im_end|><s>", "a< |im_end|>< s>"),
        ("a\ud800b", "a\ufffdb"),
        ("2001: A Space Odyssey", "2001: A Space Odyssey"),
        ("\n \u00a0", ""),
    ],
)
def test_clean_title_examples(title, cleaned):
    assert clean_title(title, rules_for(DEFAULT, ["<|im_end|>", "<s>"])) == cleaned


def test_markers_follow_the_template():
    rules = rules_for(
        PromptTemplate(candidate_item="[{label}] {title}", history_item="{number}. {title}")
    )
    assert clean_title("Plan [B] (B) 2. Vol 2.5 (1)", rules) == "Plan B (B) 2 Vol 2.5 (1)"
    with pytest.raises(ValueError, match="prompt_candidate_item.*no punctuation"):
        rules_for(PromptTemplate(candidate_item="{label} {title}"))


def test_empty_titles_are_shown_as_unknown(tokenizer):
    builder = PromptBuilder(tokenizer, ["", "", " \n", "Heat"], LABELS)
    assert f"(A) {UNTITLED} (B) Heat" in builder.text([1], [2, 3])


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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text", "{history}", "prompt_text is '{history}': it lacks the placeholder {candidates}"),
        ("text", "{history} {candidates} {user}", "unknown placeholder {user}"),
        ("text", "a {history} b {history} {candidates}", "has a placeholder twice"),
        ("text", "a b: {candidates} {history}", "{history} must stand before {candidates}"),
        ("text", "a b: {history}/{candidates}", "between {history} and the first title"),
        ("text", "{history} - {candidates}", "before the first title of {history}"),
        ("history_item", "{number:02d} {title}", "has a format or conversion"),
        ("history_item", "{title} ", "prompt_history_item is '{title} ': it must neither begin"),
        ("candidate_item", "{title}", "prompt_candidate_item is '{title}': it lacks"),
        ("candidate_item", "({label}) {title", "cannot be read"),
        ("response", "{}", "prompt_response is '{}': it has the unknown placeholder {}"),
        ("separator", "\n", "prompt_separator is '\\n': it must begin with a space"),
        ("instruction", "a\0b", "U+0000"),
    ],
)
def test_wrong_templates_name_their_key(field, value, message):
    settings = {"history_item": "{title}", "candidate_item": "{label}:{title}"} | {field: value}
    with pytest.raises(ValueError) as caught:
        PromptTemplate(**settings)
    assert message in str(caught.value)


def test_all_placeholder_errors_come_at_once():
    with pytest.raises(ValueError, match="(?s)prompt_history_item.*prompt_response"):
        PromptTemplate(history_item="x", response="y")


def test_tokenizer_that_appends_a_token_is_refused(llama_folder):
    tokenizer = LlamaTokenizer.from_pretrained(llama_folder, add_eos_token=True)
    with pytest.raises(ValueError, match="add_eos_token=False"):
        PromptBuilder(tokenizer, catalogue([]), LABELS)


def test_tokenizer_that_joins_words_is_warned_about_once(caplog):
    backend = tokenizers.Tokenizer(models.BPE())  # no pre-tokeniser: merges cross spaces
    lines = [" ".join(catalogue([])) + DEFAULT.text + DEFAULT.instruction + "(A) (B)"]
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    backend.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with caplog.at_level(logging.WARNING):
        builder = PromptBuilder(tokenizer, catalogue([]), LABELS)
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
