"""``llamarec.json``: what another program needs to build prompts and to read the answers."""

from __future__ import annotations

from typing import Any

from recbole_llamarec.export.examples import examples
from recbole_llamarec.export.load import BASE_FOLDER, Export
from recbole_llamarec.version import __version__

ABOUT = "llamarec.json"
FORMAT = "recbole-llamarec export 1"
ADAPTER, MERGED = "adapter", "merged"


def description(export: Export, weights: str) -> dict[str, Any]:
    """Describe an export in JSON's types; docs/recommend-and-serve.md explains the fields.

    Args:
        export: what is exported.
        weights: ``adapter`` or ``merged``.
    """
    model, base, ranker = export.model, export.base, export.ranker
    prompts, verbalizer = ranker.prompts, ranker.verbalizer
    has_base = weights == ADAPTER and not base.is_on_hub
    return {
        "format": FORMAT,
        "recbole_llamarec": __version__,
        "dataset": export.config["dataset"],
        "weights": weights,
        "dtype": export.dtype,
        "base_model": {
            "name": base.name,
            "revision": base.revision,
            "folder": BASE_FOLDER if has_base else None,
            "trained_as": base.trained_as,
        },
        "prompt": dict(vars(prompts.template)),
        "max_history": prompts.max_history,
        "max_title_tokens": export.settings.prompt_max_title_tokens,
        "max_prompt_tokens": prompts.max_prompt_tokens,
        "labels": list(verbalizer.labels),
        "label_token_ids": list(verbalizer.token_ids),
        "fusion": {
            "retriever": export.settings.retriever,
            "n_candidates": export.settings.rerank_candidates,
            "with_retriever": model.fusion.with_retriever,
            "weights": dict(model.fusion.weights or {}),
            "language_model": export.settings.ranking_method,
        },
        "examples": examples(export),
        "items": dict(zip(export.tokens[1:], prompts.titles[1:], strict=True)),
    }
