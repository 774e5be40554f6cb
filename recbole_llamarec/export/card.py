"""The model card of an export: data, metrics, command and licence, for people and for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from recbole_llamarec.adapters.card import CARD_FILE, AdapterCard, read_card
from recbole_llamarec.evaluation.table import RANK, stage_means
from recbole_llamarec.evaluation.users_file import read_run_users
from recbole_llamarec.export.load import Export
from recbole_llamarec.version import __version__

PAGE = "README.md"
OTHER_LICENCE = {"license": "other", "license_name": "as-the-base-model"}


def card_files(export: Export, checkpoint: Path, merged: bool, licence: str | None) -> dict:
    """Texts by file name: the page, and beside an adapter the card that says what it is tuned on.

    What a run leaves beside its checkpoint is used where it is there: the adapter's card, and the
    table of users for the metrics of the test.

    Args:
        export: what is exported.
        checkpoint: the run's.
        merged: whether the whole model is written.
        licence: its identifier on the hub; that of the base model if left out.

    Raises:
        ValueError: one of these files is damaged; names it.
    """
    card = read_card(checkpoint.with_suffix(".adapter"))
    table = checkpoint.with_suffix(".users.csv")
    stages = _test_metrics(table) if table.is_file() else {}
    files = {PAGE: _page(export, merged, licence, card, stages)}
    if card is not None and not merged:
        named = replace(card, language_model=export.base.name)  # without folders of this machine
        files[CARD_FILE] = named.json()
    return files


def _test_metrics(table: Path) -> dict[str, dict[str, float]]:
    """Metrics on all test rows by stage, from a run's table of users."""
    users = read_run_users(table)
    prefix = f"{RANK}:"
    stages = [name.removeprefix(prefix) for name in users if name.startswith(prefix)]
    return {stage: {"rows": len(users), **stage_means(users, stage)} for stage in stages}


def _page(
    export: Export,
    merged: bool,
    licence: str | None,
    card: AdapterCard | None,
    stages: Mapping[str, Mapping[str, float]],
) -> str:
    base, dataset = export.base, export.test.dataset
    header: dict[str, Any] = {}
    if base.hub_name is not None:
        header["base_model"] = base.hub_name
        header["base_model_relation"] = "finetune" if merged else "adapter"
    header["library_name"] = "transformers" if merged else "peft"
    known = licence or base.licence
    header |= {"license": known} if known else OTHER_LICENCE
    header["tags"] = ["recommendation", "llamarec", *([] if merged else ["lora"])]
    rows = [{"stage": stage, **metrics} for stage, metrics in stages.items()]
    weights = export.model.fusion.weights or {}
    return _TEXT.format(
        header=yaml.safe_dump(header, sort_keys=False),
        dataset=dataset.dataset_name,
        base=base.name,
        what="The whole model, its adapter added to the weights"
        if merged
        else "A LoRA adapter (PEFT's format)",
        counts=f"{dataset.user_num - 1} users, {dataset.item_num - 1} items",
        tuning=_tuning(card),
        quantised="" if base.trained_as is None else _QUANTISED.format(key=base.trained_as),
        dtype=export.dtype,
        metrics=tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f")
        or "Not known: the run's table of users did not lie beside its checkpoint.",
        retriever=export.settings.retriever,
        n_candidates=export.settings.rerank_candidates,
        fusion=", ".join(f"{name} {weight:.3g}" for name, weight in weights.items()) or "none",
        licence=_LICENCE[licence is not None].format(licence=known or "not known here"),
        version=__version__,
    )


def _tuning(card: AdapterCard | None) -> str:
    """What the adapter was tuned on, a list in Markdown."""
    if card is None:
        return "- tuning: not known, for the run's adapter did not lie beside its checkpoint"
    return (
        f"- training part: digest `{card.training_part}`\n"
        f"- tuned on {card.samples} samples, seed {card.seed}, in {card.hours} hours\n"
        f"- command: `{card.command}`"
    )


_QUANTISED = "\nIt was tuned on weights quantised by `{key}`; these are not, and scores differ.\n"
_LICENCE = {
    False: "The base model's: {licence}. The terms of the data hold for the titles.",
    True: "{licence}, as who exported it says. The terms of the data hold for the titles.",
}
_TEXT = """---
{header}---
# LlamaRec for {dataset}

{what}, of {base}.
It ranks a retriever's candidates for a user's history, each with an index letter, in one forward
pass (LlamaRec, arXiv 2311.02089).
{quantised}
## Use

    python rank.py --check
    python rank.py --history "TITLE" "TITLE" --candidates "TITLE" "TITLE" "TITLE"

`rank.py` needs torch, transformers and PEFT alone, and shows how a prompt is built and read. With
`--check` it compares its scores of three examples with those of the program that exported them.
`llamarec.json` holds the wording, the labels with their token ids, the titles by item token, and
how the run joined retriever and language model. Weights are {dtype}.

## Data and training

- data: {dataset}, {counts}
{tuning}
- recbole-llamarec {version}

## Metrics

On the test rows. `final` is the order of the whole run: {retriever} proposes {n_candidates}
candidates, and the weights beside it are: {fusion}. The retriever is not in this folder.

{metrics}

## Licence

{licence}
"""
