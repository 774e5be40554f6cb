"""What the keys of the language model must fulfil beside their rules.

Checks as in :mod:`recbole_llamarec.settings_checks`, which makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recbole_llamarec.keys import shown
from recbole_llamarec.ranking.model.loading import check_language_model
from recbole_llamarec.ranking.model.settings import LanguageModelSettings
from recbole_llamarec.ranking.prompt.template import placeholder_error
from recbole_llamarec.ranking.protocol import (
    NO_RANKER,
    ranker_class_of,
    ranker_names,
    reads_labels,
)
from recbole_llamarec.ranking.verbalizer import default_labels


def _ranker_has_the_loss(ranking_method: str, train_loss: str) -> list[str]:
    if ranking_method == NO_RANKER:
        return []
    losses = ranker_class_of(ranking_method).losses
    if train_loss in losses:
        return []
    others = [name for name in ranker_names() if train_loss in ranker_class_of(name).losses]
    hint = f" {train_loss} needs ranking_method: {' or '.join(others)}." if others else ""
    return [
        f"train_loss: {train_loss!r} must be a loss of ranking_method: {ranking_method}, "
        f"{' or '.join(losses)}.{hint}"
    ]


def _labels_are_enough(
    ranking_method: str, verbalizer_labels: Sequence[str] | None, rerank_candidates: int
) -> list[str]:
    if not reads_labels(ranking_method):
        return []
    if verbalizer_labels is None:
        return fault_of(default_labels, rerank_candidates)
    if len(verbalizer_labels) >= rerank_candidates:
        return []
    return [
        f"rerank_candidates: {rerank_candidates} candidates need as many labels, but "
        f"verbalizer_labels has {len(verbalizer_labels)}. Name more labels or rank fewer "
        "candidates."
    ]


def _labels_are_shown(ranking_method: str, prompt_candidate_item: str) -> list[str]:
    if not reads_labels(ranking_method):
        return []
    error = placeholder_error("candidate_item", prompt_candidate_item, {"label", "title"}, set())
    return [error] if error else []


def _line_breaks_are_no_backslashes(
    prompt_instruction: str,
    prompt_text: str,
    prompt_history_item: str,
    prompt_candidate_item: str,
    prompt_separator: str,
    prompt_empty_history: str,
    prompt_response: str,
    likelihood_heading: str,
) -> list[str]:
    """On a command line, and in YAML without double quotes, a backslash and an n stay these two."""
    return [
        f"{key}: {shown(value)} has a backslash and an n, which are no line break. In YAML put the "
        f"text in double quotes; on a command line write it as Python: --{key}=\"'…\\n…'\"."
        for key, value in locals().items()
        if r"\n" in value
    ]


def _language_model_can_be_loaded(ranking_method: str, llm: LanguageModelSettings) -> list[str]:
    return [] if ranking_method == NO_RANKER else fault_of(check_language_model, llm)


def _ranker_can_be_served(llm_backend: str, ranking_method: str) -> list[str]:
    if llm_backend == "local" or ranking_method == NO_RANKER:
        return []
    if hasattr(ranker_class_of(ranking_method), "served"):
        return []
    able = [name for name in ranker_names() if hasattr(ranker_class_of(name), "served")]
    return [
        f"llm_backend: {llm_backend} has no ranking_method: {ranking_method}, which needs more of "
        f"the model than a server gives; set ranking_method to {' or '.join(able)}, or llm_backend "
        "to local."
    ]


def _served_model_is_not_tuned(llm_backend: str, ranking_method: str, epochs: int) -> list[str]:
    if llm_backend == "local" or ranking_method == NO_RANKER or epochs == 0:
        return []
    return [
        f"epochs: {epochs} tunes the language model, but with llm_backend: {llm_backend} a server "
        "has it; set epochs to 0, or llm_backend to local."
    ]


def _served_model_has_its_adapter(
    llm_backend: str, ranking_method: str, lora_adapter: str | None
) -> list[str]:
    if llm_backend == "local" or ranking_method == NO_RANKER or lora_adapter in (None, "auto"):
        return []
    return [
        f"lora_adapter: {shown(lora_adapter)} cannot be put on the model of a server (llm_backend: "
        f"{llm_backend}); let the server load it, name the model with it in llm_http_model, and "
        "set lora_adapter to ~."
    ]


CHECKS: tuple[Callable[..., list[str]], ...] = (
    _ranker_has_the_loss,
    _labels_are_enough,
    _labels_are_shown,
    _line_breaks_are_no_backslashes,
    _ranker_can_be_served,
    _served_model_is_not_tuned,
    _served_model_has_its_adapter,
    _language_model_can_be_loaded,
)


def fault_of(function: Callable[[Any], Any], argument: Any) -> list[str]:
    """What ``function`` says is wrong with the user's input."""
    try:
        function(argument)
    except (ValueError, FileNotFoundError, ImportError) as error:
        return [str(error)]
    return []
