"""Keys and values of earlier versions that are gone, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recbole_llamarec.keys import shown
from recbole_llamarec.ranking.protocol import ranker_names


def _other_than(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: value is not None and value not in harmless


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


_NO_PROMPT_EVIDENCE = "evidence no longer stands in the prompt. Remove the key: "
_ONE_ORDER = "prompts show the candidates in the retriever's order alone. Remove the key"
_OLD_INSTRUCTION = (
    "Given user history in chronological order, rank all items of the candidate pool, the most "
    "likely next item first. Write one title a line, as it stands in the pool, without its index "
    "letter."
)
# By key: which of its values ask for what is gone (the others are harmless), and what to do.
REMOVED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "evidence_use": (
        _other_than("fusion"),
        _NO_PROMPT_EVIDENCE + "evidence_items makes it a scorer beside the language model",
    ),
    "evidence_followers": (
        _other_than(20),
        _NO_PROMPT_EVIDENCE + "evidence is counted for all candidates",
    ),
    "generate_instruction": (
        _other_than(_OLD_INSTRUCTION),
        "text is generated in benchmarks/ alone. Remove the key",
    ),
    "rerank_order": (_other_than("retriever"), _ONE_ORDER),
    "rerank_permutations": (_other_than(1), _ONE_ORDER),
    "rerank_label_prior_rows": (
        _other_than(0),
        "the labels' prior is no longer subtracted. Remove the key",
    ),
    "lora_adapter": (
        _one_of("shipped"),
        "set it to auto, which finds the adapter that was trained on the run's training part",
    ),
    "train_candidates": (_one_of("mixed"), "set it to random, popular, retriever or retrieved"),
    "train_loss": (
        _one_of("ranknet", "evidence"),
        "set it to label, or write the loss for a ranker of your own; see docs/extending.md",
    ),
    "ranking_method": (
        lambda value: value == "generate" and value not in ranker_names(),
        "set it to verbalizer or likelihood; benchmarks/ has the generating ranker",
    ),
}


def removed_values(config: Any) -> dict[str, str]:
    """An error for each key of a config that asks for what is gone.

    Args:
        config: gives a key's value by ``config[key]``, and tells by ``key in config`` whether it
            is there.
    """
    return {
        name: f"{name}: {shown(config[name])} has been removed: {remedy}."
        for name, (is_meant, remedy) in REMOVED.items()
        if name in config and is_meant(config[name])
    }
