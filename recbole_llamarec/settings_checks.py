"""What LlamaRec's keys must fulfil beside their rules.

A check is a function whose parameters are the keys that it compares. It returns an error for each
contradiction. It is left out while one of its keys is wrong by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

from recbole.evaluator.register import metric_types
from recbole.utils import EvaluatorType

from recbole_llamarec import language_model_checks
from recbole_llamarec.data.item_text import check_fallback, format_fields
from recbole_llamarec.evaluation.metrics import has_cutoffs
from recbole_llamarec.integration.configs import SHARED_KEYS, sequential_model_class
from recbole_llamarec.integration.known import rules_of
from recbole_llamarec.keys import PLAIN, shown
from recbole_llamarec.language_model_checks import fault_of
from recbole_llamarec.recbole_keys import RULES, wrong_values
from recbole_llamarec.retriever_keys import FILE_CHECKS
from recbole_llamarec.training_keys import pool_size


def contradictions(values: Mapping[str, Any]) -> list[str]:
    """The errors of all checks.

    Args:
        values: by key those that are right by themselves, RecBole's among them; the group ``llm``
            where its files are to be looked for.
    """
    errors = []
    for check in CHECKS:
        names = _parameters(check)
        if names <= values.keys():
            errors += check(**{name: values[name] for name in names})
    return errors


@cache
def _parameters(check: Callable[..., list[str]]) -> frozenset[str]:
    return frozenset(inspect.signature(check).parameters)


def _ranks_the_whole_catalogue(eval_args: Mapping[str, Any]) -> list[str]:
    mode = eval_args.get("mode", "full")
    if mode == "full" or (isinstance(mode, Mapping) and set(mode.values()) <= {"full"}):
        return []
    return [
        f"eval_args: mode {mode!r} samples the items to rank; LlamaRec ranks the "
        "whole catalogue. Set mode: full."
    ]


def metrics_are_of_rankings(metrics: str | Sequence[str]) -> list[str]:
    """A ranking of the whole catalogue has no metric of single values."""
    names = [metrics] if isinstance(metrics, str) else metrics
    if metric_types[names[0].lower()] == EvaluatorType.RANKING:
        return []
    ranking = [name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING]
    return [
        f"metrics: {metrics!r} compares scores of labelled rows, but with eval_args mode: full the "
        f"whole catalogue is ranked. Use metrics of rankings: {', '.join(sorted(ranking))}."
    ]


def _valid_metric_is_computed(
    valid_metric: str, metrics: str | Sequence[str], topk: int | Sequence[int]
) -> list[str]:
    """RecBole would fail on this after the first epoch."""
    names = [metrics] if isinstance(metrics, str) else metrics
    cutoffs = [topk] if isinstance(topk, int) else topk
    known = [
        place
        for name in names
        for place in ([f"{name}@{k}" for k in cutoffs] if has_cutoffs(name) else [name])
    ]
    if valid_metric.lower() in [name.lower() for name in known]:
        return []
    return [
        f"valid_metric: {valid_metric!r} is not computed; it must be one of metrics, at one "
        f"of topk where it has a cut-off: {', '.join(known)}."
    ]


def _item_text_can_be_made(item_text_format: str) -> list[str]:
    return fault_of(format_fields, item_text_format)


def _fallback_can_be_made(item_text_fallback: str) -> list[str]:
    return fault_of(check_fallback, item_text_fallback)


def _fields_differ(
    USER_ID_FIELD: str, ITEM_ID_FIELD: str, TIME_FIELD: str, ITEM_LIST_LENGTH_FIELD: str
) -> list[str]:
    """RecBole would write one column over the other."""
    return [
        f"{one}: {field!r} is the field of {other} too; name another one."
        for (one, field), (other, same) in combinations(locals().items(), 2)
        if field == same
    ]


def _retriever_is_sequential(retriever: str) -> list[str]:
    return fault_of(sequential_model_class, retriever)


def _retriever_has_right_values(
    retriever: str, retriever_config: Mapping[str, Any] | None
) -> list[str]:
    given = retriever_config or {}
    rules = {**dict.fromkeys(given, PLAIN), **RULES, **rules_of(retriever)}
    return list(wrong_values(given, rules, "retriever_config: ").values())


def _retriever_config_is_the_retrievers(retriever_config: Mapping[str, Any] | None) -> list[str]:
    """The retriever reads the run's data, splits, metrics and machine."""
    given = retriever_config or {}
    own = {"eval_batch_size", "shuffle", "valid_metric"}
    shared = {*SHARED_KEYS, "model", "dataset"} - own
    return [
        f"retriever_config: {key}: {shown(given[key])} belongs to the whole run; set {key} beside "
        "retriever_config."
        for key in given
        if key in shared
    ]


def _retriever_validates_by_what_is_computed(
    retriever_config: Mapping[str, Any] | None,
    metrics: str | Sequence[str],
    topk: int | Sequence[int],
) -> list[str]:
    metric = (retriever_config or {}).get("valid_metric")
    if not isinstance(metric, str):
        return []
    found = _valid_metric_is_computed(metric, metrics, topk)
    return [f"retriever_config: {error}" for error in found]


def _candidates_are_drawn_from_enough(
    train_candidates: str,
    train_candidates_from: int,
    train_pool: int | None,
    train_evidence: float,
    rerank_candidates: int,
) -> list[str]:
    errors = []
    if train_candidates == "retrieved" and not train_evidence:
        errors.append(
            "train_candidates: retrieved needs train_evidence, since the target is often none of "
            f"them; it is {train_evidence}. Set it above 0, as to 0.7."
        )
    if (train_pool or 0) > rerank_candidates:
        errors.append(
            f"train_pool: {train_pool} must be at most rerank_candidates, {rerank_candidates}."
        )
    key, needed = pool_size(train_pool, rerank_candidates)
    if train_candidates == "retriever" and train_candidates_from < needed:
        errors.append(
            f"train_candidates_from: {train_candidates_from} must be at least {key}, {needed}."
        )
    return errors


def _titles_are_learnt_without_candidates(
    train_loss: str, train_evidence: float, train_binding_steps: int
) -> list[str]:
    given = {"train_evidence": train_evidence, "train_binding_steps": train_binding_steps}
    return [
        f"{key}: {value} teaches a choice among candidates, and train_loss: titles shows none; set "
        f"{key} to 0, or train_loss to label."
        for key, value in given.items()
        if value and train_loss == "titles"
    ]


def _several_scorers_are_fitted(
    rerank_fusion: str | float | None, evidence_items: int, scorers: Sequence[str] | None
) -> list[str]:
    """A weight, or none, is for the language model alone beside the retriever."""
    if rerank_fusion == "auto":
        return []
    given = {"evidence_items: 0": evidence_items, "scorers: ~": scorers}
    return [
        f"{without.split(':')[0]}: {value!r} needs rerank_fusion: auto, which weighs several "
        f"scorers, but it is {rerank_fusion!r}. Set rerank_fusion: auto, or {without}."
        for without, value in given.items()
        if value
    ]


CHECKS: tuple[Callable[..., list[str]], ...] = (
    _ranks_the_whole_catalogue,
    metrics_are_of_rankings,
    _fields_differ,
    _valid_metric_is_computed,
    _item_text_can_be_made,
    _fallback_can_be_made,
    _retriever_is_sequential,
    *FILE_CHECKS,
    _retriever_has_right_values,
    _retriever_config_is_the_retrievers,
    _retriever_validates_by_what_is_computed,
    _candidates_are_drawn_from_enough,
    _titles_are_learnt_without_candidates,
    _several_scorers_are_fitted,
    *language_model_checks.CHECKS,
)
