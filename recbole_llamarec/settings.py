"""LlamaRec's YAML keys as one typed, frozen object, validated before anything is loaded.

Each key is stated once: as a field made by :func:`recbole_llamarec.keys.key`, here or in the
dataclass of a group. ``python -m recbole_llamarec.generate_keys`` makes the property file and the
table of keys from these fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from recbole_llamarec.keys import (
    SWITCH,
    TEXT,
    Key,
    Rule,
    either,
    key,
    keys_of,
    list_of,
    number,
    one_of,
    optional,
    whole,
)
from recbole_llamarec.path_rules import PATH
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.ranking.model.settings import LanguageModelSettings
from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.protocol import NO_RANKER, ranker_names
from recbole_llamarec.ranking.served.settings import HttpSettings
from recbole_llamarec.recbole_keys import RUN_RULES, wrong_values
from recbole_llamarec.removed_keys import REMOVED, removed_values
from recbole_llamarec.retriever_keys import RetrieverKeys
from recbole_llamarec.settings_checks import contradictions
from recbole_llamarec.training_keys import TrainingKeys, TuningKeys

GROUPS = {
    "prompt_": PromptTemplate,
    "llm_": LanguageModelSettings,
    "llm_http_": HttpSettings,
    "lora_": LoraSettings,
}
RANKER = Rule(
    "str",
    f"{', '.join(ranker_names())}, {NO_RANKER}, or a name given to register_ranker",
    lambda value: value == NO_RANKER or value in ranker_names(),
)


@dataclass(frozen=True)
class LlamaRecSettings(RetrieverKeys, TuningKeys):
    """LlamaRec's keys: an attribute each, and one for each group that ``ranking/`` states."""

    exact_chronology: bool = key(
        True,
        SWITCH,
        "Sort by the exact timestamp, ties in file order. False: by the float32 timestamp, as "
        "RecBole does, to compare with its tables.",
    )
    item_text_format: str = key(
        "{title}",
        TEXT,
        "Item text, with names of token or token_seq item fields in braces. The first one names "
        "the item. Load them with load_col.",
    )
    item_text_missing: str = key(
        "drop",
        one_of("drop", "fallback"),
        "drop: remove items without text before k-core filtering, as in the paper. fallback: keep "
        "them under item_text_fallback.",
    )
    item_text_fallback: str = key(
        "Item {token}", TEXT, "Text of an item without text; {token} is its id."
    )

    ranking_method: str = key(
        "verbalizer",
        RANKER,
        "How the language model ranks. verbalizer: by the logits of the candidates' labels (the "
        "paper's). likelihood: by how probable each title is behind the history's. readout: by "
        "the answer, yes or no, behind each candidate's title. none: no language model. Or a name "
        "given to register_ranker; see docs/extending.md.",
    )
    likelihood_heading: str = key(
        "User history:", TEXT, "What stands before the titles with likelihood."
    )
    likelihood_temperature: float = key(
        7,
        number(above=1e-3, at_most=1e6),
        "Log-likelihoods (in nats) are divided by it, so that an untuned model is about as sure of "
        "its scores as they are right.",
    )
    likelihood_prior: float = key(
        0.75,
        number(at_least=0, at_most=1e3),
        "Share of a title's log-likelihood behind the heading alone that is subtracted, since some "
        "titles are likely anywhere.",
    )
    evidence_items: int = key(
        0,
        whole(0),
        "Number of the history's last items that evidence is counted for: how often other users "
        "chose each candidate after them, in training data. It is a scorer beside the language "
        "model, with rerank_fusion: auto; 0 leaves it out.",
    )
    evidence_window: int = key(
        20,
        whole(1),
        "Steps behind an item within which another follows it; one d steps behind counts 1 / d.",
    )
    scorers: tuple[str, ...] | None = key(
        None,
        optional(list_of(TEXT, distinct=True)),
        "Names of further scorers that take part beside evidence and the language model; see "
        "docs/extending.md.",
    )

    rerank_candidates: int = key(20, whole(2), "Candidates that are ranked again, K.")
    rerank_fusion: str | float | None = key(
        "auto",
        optional(either("auto", number(at_least=0, at_most=1e6))),
        "How scorers are joined with the retriever. auto: their weights are fitted on validation; "
        "a scorer with weight 0 is asked in a test alone, for its rows of the table. A number: "
        "weight of the ranker's log-probabilities beside the retriever's, where it is the only "
        "scorer. ~: the ranker alone, as in the paper.",
    )
    rerank_fusion_rows: int | None = key(
        2000, optional(whole(1)), "Validation rows that the weights are fitted on; ~ takes all."
    )
    rerank_mask_seen: bool | str = key(
        True,
        one_of(True, False, "window"),
        "Whether all that the user has chosen before a row, in any part, ranks last in it, as in "
        "the paper; RecBole itself does not mask it. window: only the items that the retriever "
        "reads, as the official code does. Where users choose again: False.",
    )
    rerank_skip_misses: bool = key(
        True,
        SWITCH,
        "Do not rank test rows whose target is not a candidate, while every metric depends on the "
        "target's rank alone: none can change.",
    )

    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    prompt_max_history: int = key(
        10, whole(0, 1000), "Most recent items shown; the paper shows 20."
    )
    prompt_max_title_tokens: int = key(32, whole(1), "Longer titles are cut.")
    prompt_max_tokens: int | None = key(
        None,
        optional(whole(1)),
        "Longer prompts lose their oldest history; ~ is the model's own limit.",
    )
    verbalizer_labels: tuple[str, ...] | None = key(
        None,
        optional(list_of(TEXT, distinct=True)),
        "Labels of the candidates, one token each; ~ is A-Z, then a-z.",
    )

    llm: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    llm_batch_tokens: int = key(
        2048,
        whole(1),
        "Tokens of one forward pass without gradients, padding included; small batches are the "
        "faster ones on a CPU.",
    )

    llm_http: HttpSettings = field(default_factory=HttpSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    lora_adapter: str | None = key(
        "auto",
        optional(PATH),
        "auto: an adapter of the package or of the user's cache that was trained on exactly this "
        "training part, which is not tuned again; else a new one. A PEFT directory that the "
        "adapter starts from, with its own lora_r, lora_alpha and modules. ~ starts from a new "
        "one.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "retriever_config", dict(self.retriever_config or {}))
        for name in ("scorers", "verbalizer_labels"):
            if isinstance(getattr(self, name), list):  # as YAML gives it
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def has_ranker(self) -> bool:
        """Whether a language model ranks candidates."""
        return self.ranking_method != NO_RANKER

    @property
    def has_scorers(self) -> bool:
        """Whether candidates are ranked again at all; otherwise the retriever's order is final."""
        return self.has_ranker or self.evidence_items > 0 or bool(self.scorers)

    @classmethod
    def from_config(cls, config: Any, finds_model: bool = True) -> LlamaRecSettings:
        """Read and check every key; all errors are reported together.

        Args:
            config: gives a key's value by ``config[key]``, ``None`` where it is missing, and tells
                by ``key in config`` whether it is there. A key that is not takes its default, so
                that checkpoints of older versions can be read.
            finds_model: whether the language model's files are looked for.

        Raises:
            ValueError: names each wrong key, RecBole's among them, the value found, and what is
                allowed.
        """
        values = {stated.name: _value(config, stated) for stated in all_keys()}
        of_recbole = {name: config[name] for name in RUN_RULES if name in config}
        wrong = removed_values(config)
        for stated in all_keys():
            if error := stated.error(values[stated.name]):
                wrong.setdefault(stated.name, error)
        wrong = wrong_values(of_recbole, RUN_RULES) | wrong
        errors = list(wrong.values())
        groups: dict[str, Any] = {}
        for prefix, kind in GROUPS.items():
            names = [stated.name for stated in keys_of(kind, prefix)]
            if wrong.keys().isdisjoint(names):
                try:
                    given = {name.removeprefix(prefix): values[name] for name in names}
                    groups[prefix.removesuffix("_")] = kind(**given)
                except ValueError as error:
                    errors += str(error).splitlines()
        right = {n: value for n, value in (of_recbole | values).items() if n not in wrong}
        checked = right | groups
        if not finds_model:
            checked.pop("llm", None)
        _raise(errors + contradictions(checked))
        return cls(**{stated.name: values[stated.name] for stated in keys_of(cls)}, **groups)


def _value(config: Any, stated: Key) -> Any:
    if stated.name not in config:
        return stated.default
    return config[stated.name]


def all_keys() -> list[Key]:
    """Every key that is stated: RecBole's training keys, then LlamaRec's in the files' order."""
    ours = {stated.name: [stated] for stated in keys_of(LlamaRecSettings)}
    groups = {prefix.removesuffix("_"): [*keys_of(kind, prefix)] for prefix, kind in GROUPS.items()}
    stated_by = ours | groups
    in_order = [stated for held in fields(LlamaRecSettings) for stated in stated_by[held.name]]
    return [*keys_of(TrainingKeys), *in_order]


def llamarec_keys() -> tuple[str, ...]:
    """Every YAML key that LlamaRec adds to RecBole's."""
    of_recbole = {stated.name for stated in keys_of(TrainingKeys)}
    return tuple(stated.name for stated in all_keys() if stated.name not in of_recbole)


def report_unknown_keys(given: Iterable[str], known: Iterable[str]) -> list[str]:
    """Find misspelt LlamaRec keys among those that the user gave.

    Args:
        given: keys from files, the config dict and the command line.
        known: keys that RecBole reads.

    Returns:
        the keys that nobody reads and that are not like any of LlamaRec's, for a warning; also
        removed keys, whose value :meth:`LlamaRecSettings.from_config` has let pass.

    Raises:
        ValueError: a key is not known but resembles one of LlamaRec's; names the nearest.
    """
    ours = llamarec_keys()
    prefixes = tuple(sorted({name.split("_")[0] + "_" for name in ours if "_" in name}))
    errors, others = [], []
    for name in given:
        if name in {*known, *ours}:
            continue
        nearest = difflib.get_close_matches(name, ours, n=1, cutoff=0.75)
        if not nearest and name.startswith(prefixes):
            nearest = difflib.get_close_matches(name, ours, n=1, cutoff=0.0)
        if nearest and name not in REMOVED:
            errors.append(f"{name}: no such key; did you mean {nearest[0]!r}?")
        else:
            others.append(name)
    _raise(errors)
    return others


def _raise(errors: list[str]) -> None:
    if errors:
        raise ValueError("LlamaRec cannot start:\n" + "\n".join(f"- {line}" for line in errors))
