"""LlamaRec's YAML keys as one typed, frozen object, validated before anything is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recbole_llamarec.data.item_text import format_fields
from recbole_llamarec.ranking.adapter import LoraSettings
from recbole_llamarec.ranking.language_model import (
    EMBEDDED,
    LanguageModelSettings,
    check_language_model,
)
from recbole_llamarec.ranking.template import PromptTemplate
from recbole_llamarec.ranking.tuning import LOSSES
from recbole_llamarec.ranking.verbalizer import default_labels

GROUPS = {"prompt_": PromptTemplate, "llm_": LanguageModelSettings, "lora_": LoraSettings}


def _whole(at_least: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: type(value) is int and value >= at_least,
        f"a whole number of at least {at_least}",
    )


def _optional(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or nothing (~)"


_TEXT = (lambda value: isinstance(value, str) and value != "", "a text")
_SWITCH = (lambda value: isinstance(value, bool), "True or False")
_MAPPING = (lambda value: isinstance(value, Mapping), "a mapping of RecBole keys to values")
_LABELS = (
    lambda value: (
        isinstance(value, list | tuple)
        and all(isinstance(label, str) and label for label in value)
        and len(set(value)) == len(value)
    ),
    "a list of distinct texts (letters and digits in quotes)",
)

SHIPPED_ADAPTER = Path(__file__).parent / "adapters" / "evidence-reader"
LIKELIHOOD_LOSSES = ("titles", "evidence")  # beside label, which both methods have
FUSED_METHODS = ("verbalizer", "likelihood")  # those that give log-probabilities
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "exact_chronology": _SWITCH,
    "item_text_format": _TEXT,
    "item_text_missing": (lambda value: value in ("drop", "fallback"), "drop or fallback"),
    "item_text_fallback": _TEXT,
    "retriever": _TEXT,
    "retriever_config": _optional(_MAPPING),
    "retriever_checkpoint": _optional(_TEXT),
    "ranking_method": (
        lambda value: value in ("verbalizer", "likelihood", "generate", "none"),
        "verbalizer, likelihood, generate or none",
    ),
    "likelihood_heading": _TEXT,
    "likelihood_temperature": (
        lambda value: type(value) in (int, float) and 0 < value < float("inf"),
        "a number above 0",
    ),
    "likelihood_prior": (
        lambda value: type(value) in (int, float) and 0 <= value < float("inf"),
        "a number of at least 0",
    ),
    "evidence_items": _whole(0),
    "evidence_window": _whole(1),
    "evidence_use": (lambda value: value in ("fusion", "prompt"), "fusion or prompt"),
    "evidence_followers": _whole(1),
    "generate_instruction": _TEXT,
    "rerank_candidates": _whole(2),
    "rerank_order": (lambda value: value in ("retriever", "shuffle"), "retriever or shuffle"),
    "rerank_permutations": _whole(1),
    "rerank_label_prior_rows": _whole(0),
    "rerank_fusion": (
        lambda value: (
            value in (None, "auto") or (type(value) in (int, float) and 0 <= value < float("inf"))
        ),
        "auto, a weight of at least 0, or nothing (~)",
    ),
    "rerank_fusion_rows": _optional(_whole(1)),
    "rerank_mask_seen": _SWITCH,
    "rerank_skip_misses": _SWITCH,
    "verbalizer_labels": _optional(_LABELS),
    "prompt_max_history": _whole(0),
    "prompt_max_title_tokens": _whole(1),
    "prompt_max_tokens": _optional(_whole(1)),
    "llm_batch_tokens": _whole(1),
    "lora_adapter": _optional(_TEXT),
    "train_candidates": (
        lambda value: value in ("random", "retriever", "mixed"),
        "random, retriever or mixed",
    ),
    "train_candidates_from": _whole(2),
    "train_positions": _whole(1),
    "train_loss": (
        lambda value: value in (*LOSSES, *LIKELIHOOD_LOSSES),
        f"one of {', '.join((*LOSSES, *LIKELIHOOD_LOSSES))}",
    ),
    "train_schedule": (lambda value: value in ("constant", "cosine"), "constant or cosine"),
    "train_max_samples": _optional(_whole(0)),
    "train_batch_tokens": _whole(1),
    "train_eval_steps": _optional(_whole(1)),
    "train_eval_rows": _optional(_whole(1)),
}


def llamarec_keys() -> tuple[str, ...]:
    """Every YAML key that LlamaRec adds to RecBole's."""
    grouped = [prefix + field.name for prefix, kind in GROUPS.items() for field in fields(kind)]
    return (*RULES, *grouped)


@dataclass(frozen=True)
class LlamaRecSettings:
    """What ``properties/model/LlamaRec.yaml`` documents, one attribute for each key or group."""

    item_text_format: str
    item_text_missing: str
    item_text_fallback: str
    retriever: str
    retriever_config: Mapping[str, Any]
    retriever_checkpoint: str | None
    ranking_method: str
    likelihood_heading: str
    likelihood_temperature: float
    likelihood_prior: float
    evidence_items: int
    evidence_window: int
    evidence_use: str
    evidence_followers: int
    generate_instruction: str
    rerank_candidates: int
    rerank_order: str
    rerank_permutations: int
    rerank_label_prior_rows: int
    rerank_fusion: str | float | None
    rerank_fusion_rows: int | None
    rerank_mask_seen: bool
    rerank_skip_misses: bool
    verbalizer_labels: tuple[str, ...]
    prompt: PromptTemplate
    prompt_max_history: int
    prompt_max_title_tokens: int
    prompt_max_tokens: int | None
    llm: LanguageModelSettings
    llm_batch_tokens: int
    lora: LoraSettings
    lora_adapter: str | None
    train_candidates: str
    train_candidates_from: int
    train_positions: int
    train_loss: str
    train_schedule: str
    train_max_samples: int | None
    train_batch_tokens: int
    train_eval_steps: int | None
    train_eval_rows: int | None

    @property
    def adapter_directory(self) -> Path | None:
        """The PEFT directory that the adapter starts from; ``None`` for a fresh adapter."""
        if self.lora_adapter == "shipped":
            return SHIPPED_ADAPTER
        return None if self.lora_adapter is None else Path(self.lora_adapter)

    @property
    def shows_evidence(self) -> bool:
        """Whether prompts show what followed the history's last items."""
        is_read = self.ranking_method == "likelihood" and self.evidence_use == "prompt"
        return is_read and self.evidence_items > 0

    @property
    def fuses_evidence(self) -> bool:
        """Whether what followed the history's last items is a score of its own."""
        is_fitted = self.rerank_fusion == "auto" and self.ranking_method in FUSED_METHODS
        return is_fitted and self.evidence_use == "fusion" and self.evidence_items > 0

    @property
    def has_ranker(self) -> bool:
        """Whether there is a second stage at all."""
        return self.ranking_method != "none"

    @classmethod
    def from_config(cls, config) -> LlamaRecSettings:
        """Read and check every key; all errors are reported together.

        Args:
            config: anything that gives a key's value by ``config[key]``, ``None`` where it is
                missing.

        Raises:
            ValueError: names each wrong key, the value found, and what is allowed.
        """
        errors = [
            f"{key}: {config[key]!r} must be {description}."
            for key, (is_valid, description) in RULES.items()
            if not is_valid(config[key])
        ]
        if config["eval_args"] and set(config["eval_args"]["mode"].values()) != {"full"}:
            errors.append(
                f"eval_args: mode {config['eval_args']['mode']!r} samples the items to rank; "
                "LlamaRec ranks the whole catalogue. Set mode: full."
            )
        errors += _valid_metric_errors(config)
        errors += _permutation_errors(config)
        errors += _candidate_errors(config)
        groups: dict[str, Any] = {}
        for prefix, kind in GROUPS.items():
            try:
                values = {field.name: config[prefix + field.name] for field in fields(kind)}
                groups[prefix] = kind(**values)
            except (ValueError, TypeError) as error:
                errors.append(str(error))
        _checked(errors)
        labels = cls._labels(config, errors)
        _collect(errors, format_fields, config["item_text_format"])
        _collect(errors, check_language_model, groups["llm_"])
        _checked(errors)
        plain = {
            key: config[key]
            for key in cls.__annotations__
            if key not in ("prompt", "llm", "lora", "verbalizer_labels", "retriever_config")
        }
        return cls(
            **plain,
            prompt=groups["prompt_"],
            llm=groups["llm_"],
            lora=groups["lora_"],
            verbalizer_labels=labels,
            retriever_config=dict(config["retriever_config"] or {}),
        )

    @staticmethod
    def _labels(config, errors: list[str]) -> tuple[str, ...]:
        count, labels = config["rerank_candidates"], config["verbalizer_labels"]
        if config["ranking_method"] == "likelihood":
            return ()
        if labels is None:
            return _collect(errors, default_labels, count) or ()
        if len(labels) < count:
            errors.append(
                f"rerank_candidates: {count} candidates need as many labels, but verbalizer_labels "
                f"has {len(labels)}. Name more labels or rank fewer candidates."
            )
        return tuple(labels[:count])


def _valid_metric_errors(config) -> list[str]:
    """RecBole would fail on this after the first epoch."""
    if not config["valid_metric"] or not config["metrics"] or not config["topk"]:
        return []
    known = [f"{metric}@{k}" for metric in config["metrics"] for k in config["topk"]]
    if config["valid_metric"].lower() in [name.lower() for name in known]:
        return []
    return [
        f"valid_metric: {config['valid_metric']!r} is not computed; it must be one of metrics at "
        f"one of topk: {', '.join(known)}."
    ]


def _permutation_errors(config) -> list[str]:
    """More rotations than candidates would repeat orders."""
    n_orders, n_candidates = config["rerank_permutations"], config["rerank_candidates"]
    if type(n_orders) is not int or type(n_candidates) is not int or n_orders <= n_candidates:
        return []
    return [
        f"rerank_permutations: {n_orders} must be at most rerank_candidates, {n_candidates}, which "
        "can be rotated so many times."
    ]


def _candidate_errors(config) -> list[str]:
    """What other keys do not allow for the candidates and for fusion."""
    errors = []
    depth, n_candidates = config["train_candidates_from"], config["rerank_candidates"]
    drawn = config["train_candidates"] in ("retriever", "mixed")
    if drawn and type(depth) is int and type(n_candidates) is int and depth < n_candidates:
        errors.append(
            f"train_candidates_from: {depth} must be at least rerank_candidates, {n_candidates}."
        )
    weight, method = config["rerank_fusion"], config["ranking_method"]
    if method == "generate" and type(weight) in (int, float):
        errors.append(
            f"rerank_fusion: {weight!r} needs the log-probabilities of ranking_method: verbalizer; "
            "set it to ~."
        )
    errors += _likelihood_errors(config)
    reads_evidence = method == "likelihood" and _shows_evidence(config)
    is_embedded = config["llm_name_or_path"] == EMBEDDED
    if config["lora_adapter"] == "shipped" and not (reads_evidence and is_embedded):
        errors.append(
            "lora_adapter: 'shipped' is for llm_name_or_path: embedded with ranking_method: "
            "likelihood, evidence_items of 1 or more and evidence_use: prompt; set it to ~."
        )
    return errors


def _likelihood_errors(config) -> list[str]:
    """Keys of the labels beside likelihood, and of likelihood beside labels."""
    loss = config["train_loss"]
    if config["ranking_method"] != "likelihood":
        if loss in LIKELIHOOD_LOSSES:
            return [f"train_loss: {loss!r} needs ranking_method: likelihood."]
        return []
    plain = {"rerank_permutations": 1, "rerank_label_prior_rows": 0, "train_positions": 1}
    errors = [
        f"{key}: {config[key]!r} is for labels, and ranking_method: likelihood reads none; set it "
        f"to {value}."
        for key, value in plain.items()
        if config[key] != value
    ]
    if loss not in ("label", *LIKELIHOOD_LOSSES):
        errors.append(
            f"train_loss: {loss!r} is for labels; with ranking_method: likelihood set it to label "
            "(the target among the candidates), titles (every title of the history) or evidence."
        )
    if loss == "evidence" and not _shows_evidence(config):
        errors.append(
            "train_loss: 'evidence' needs evidence_items of 1 or more and evidence_use: prompt."
        )
    return errors


def _shows_evidence(config) -> bool:
    return bool(config["evidence_items"]) and config["evidence_use"] == "prompt"


def report_unknown_keys(given: Iterable[str], known: Iterable[str]) -> list[str]:
    """Find misspelt LlamaRec keys among those that the user gave.

    Args:
        given: keys from files, the config dict and the command line.
        known: keys that RecBole reads.

    Returns:
        the keys that nobody reads and that are not like any of LlamaRec's, for a warning.

    Raises:
        ValueError: a key is not known but resembles one of LlamaRec's; names the nearest.
    """
    ours = llamarec_keys()
    prefixes = tuple(sorted({key.split("_")[0] + "_" for key in ours if "_" in key}))
    unknown = [key for key in given if key not in set(known) | set(ours)]
    errors, others = [], []
    for key in unknown:
        nearest = difflib.get_close_matches(key, ours, n=1, cutoff=0.75)
        if not nearest and key.startswith(prefixes):
            nearest = difflib.get_close_matches(key, ours, n=1, cutoff=0.0)
        if nearest:
            errors.append(f"{key}: no such key; did you mean {nearest[0]!r}?")
        else:
            others.append(key)
    _checked(errors)
    return others


def _collect(errors: list[str], function: Callable, *arguments):
    """Call ``function``; what is wrong with the user's input becomes a line of ``errors``."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError, ImportError) as error:
        errors.append(str(error))
        return None


def _checked(errors: list[str]) -> None:
    if errors:
        raise ValueError("LlamaRec cannot start:\n" + "\n".join(f"- {line}" for line in errors))
