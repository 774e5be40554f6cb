"""The card of an adapter: what it was trained on and how, and how well it validated.

It lies beside the adapter's weights as ``card.json``, and for people as the ``README.md`` of a
Hugging Face model card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from recbole_llamarec.keys import keys_of
from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.protocol import ranker_class_of, reads_labels
from recbole_llamarec.settings import LlamaRecSettings
from recbole_llamarec.version import __version__

CARD_FILE = "card.json"


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter is.

    Attributes:
        dataset: name of the data set.
        training_part: digest of its training part, see :func:`training_part_digest`.
        language_model: name of the model that the adapter belongs to.
        prompts: every setting that the text of the prompts depends on, by key.
        samples: how many the adapter has been tuned on, one for each optimizer step and row.
        seed: of samples, of the first weights, and of dropout.
        hours: wall time of tuning.
        command: that has trained it.
        losses: mean loss of tuning in nats, over the samples since the entry before, by the samples
            that it has seen by then, without those of the adapter it started from; cards of earlier
            versions have none.
        curve: validation metric by optimizer step.
        validation: metrics of each stage on validation rows, by the stage's name.
        version: of this package.
        started_from: digests of other data sets' training parts, by data set, that it was tuned on
            before; cards of earlier versions have none.
    """

    dataset: str
    training_part: str
    language_model: str
    prompts: dict[str, Any]
    samples: int = 0
    seed: int = 0
    hours: float = 0.0
    command: str = ""
    curve: dict[str, float] = field(default_factory=dict)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    version: str = __version__
    started_from: dict[str, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def training_parts(self) -> dict[str, str]:
        """Digests of all training parts that it has seen, by data set."""
        return {**self.started_from, self.dataset: self.training_part}

    def files(self) -> dict[str, str]:
        """What lies beside the adapter's weights: texts by file name."""
        return {CARD_FILE: self.json(), "README.md": self.page()}

    def json(self) -> str:
        """The card as ``card.json`` holds it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def page(self) -> str:
        """The card for people: a Hugging Face model card in Markdown."""
        losses, curve = (
            "; ".join(f"{at}: {value:.4f}" for at, value in points.items()) or "none"
            for points in (self.losses, self.curve)
        )
        before = "".join(
            f"\n- before it: the training part of {name}, digest `{digest}`"
            for name, digest in self.started_from.items()
        )
        rows = [{"stage": stage, **metrics} for stage, metrics in self.validation.items()]
        table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f")
        shown = {"before": before, "losses": losses, "curve": curve, "table": table or "none"}
        return _PAGE.format(**{**vars(self), **shown})


_PAGE = """---
base_model: {language_model}
library_name: peft
license: mit
tags: [recommendation, llamarec, lora]
---
# LlamaRec adapter for {dataset}

A LoRA adapter with which {language_model} ranks a retriever's candidates (LlamaRec, arXiv
2311.02089).

- data: the training part of {dataset}, digest `{training_part}`{before}
- tuned on {samples} samples, seed {seed}, in {hours} hours
- command: `{command}`
- recbole-llamarec {version}; licence: MIT
- loss of tuning by samples, each the mean since the one before: {losses}
- validation metric by optimizer step: {curve}

Metrics on validation rows; a row whose target the retriever has not proposed counts as 0:

{table}
"""


def read_card(directory: Path) -> AdapterCard | None:
    """The card in an adapter's directory; ``None`` where there is none.

    Raises:
        ValueError: it is damaged; the message names the file.
    """
    file = directory.expanduser() / CARD_FILE
    if not file.is_file():
        return None
    try:
        written = {"started_from": {}, "losses": {}, **json.loads(file.read_text(encoding="utf-8"))}
        return AdapterCard(**{own.name: written[own.name] for own in fields(AdapterCard)})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is no card of an adapter ({error!r}); copy the adapter again, or delete it."
        ) from error


def training_part_digest(dataset: Any) -> str:
    """Digest of a training part: of its users and their targets, in no order.

    It does not depend on internal ids, on the order of rows, or on the window of the histories.

    Args:
        dataset: the training part, a RecBole data set.
    """
    users, items = dataset.inter_feat[dataset.uid_field], dataset.inter_feat[dataset.iid_field]
    user_tokens = dataset.field2id_token[dataset.uid_field][np.asarray(users)]
    item_tokens = dataset.field2id_token[dataset.iid_field][np.asarray(items)]
    lines = sorted(f"{user}\t{item}\n" for user, item in zip(user_tokens, item_tokens, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def prompt_settings(settings: LlamaRecSettings) -> dict[str, Any]:
    """Every setting that the text of a prompt depends on, by key, in JSON's types."""
    template = {f"prompt_{name}": value for name, value in vars(settings.prompt).items()}
    names = ("ranking_method", "item_text_format", "likelihood_heading")
    lengths = ("prompt_max_history", "prompt_max_title_tokens")
    own = {name: getattr(settings, name) for name in (*names, *lengths)}
    return json.loads(json.dumps({**own, **template, "labels": settings.verbalizer_labels}))


def differing(card: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """Prompt settings of a run that are not the card's and that its prompts show, in words."""
    return [
        f"{name} is {run.get(name)!r}, the adapter's {card.get(name)!r}"
        for name in sorted({*card, *run} - _unseen(run))
        if card.get(name) != run.get(name)
    ]


def _unseen(run: Mapping[str, Any]) -> set[str]:
    """Prompt settings of a run that its prompts do not show."""
    method = run["ranking_method"]
    if not getattr(ranker_class_of(method), "shows_template", True):
        return {"labels", *(stated.name for stated in keys_of(PromptTemplate, "prompt_"))}
    unseen = {"likelihood_heading"}
    if "{instruction}" not in run["prompt_text"]:
        unseen.add("prompt_instruction")
    if "{label}" not in run["prompt_candidate_item"]:
        unseen.add("labels")
    if not reads_labels(method):
        unseen.add("prompt_response")
    return unseen
