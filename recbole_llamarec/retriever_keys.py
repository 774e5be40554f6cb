"""The YAML keys of the first stage: which retriever, or whose candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llamarec.keys import MAPPING, NAME, key, optional
from recbole_llamarec.path_rules import EVALUATION_FILES, FILE


@dataclass(frozen=True)
class RetrieverKeys:
    """LlamaRec's keys of its retriever."""

    retriever: str = key(
        "LRURec",
        NAME,
        "Any of RecBole's sequential recommenders, by class name; or file: the candidates of "
        "retriever_file.",
    )
    retriever_config: Mapping[str, Any] | None = key(
        None, optional(MAPPING), "RecBole keys on top of the retriever's own defaults."
    )
    retriever_checkpoint: str | None = key(
        None, optional(FILE), "A checkpoint of this retriever on this data; ~ trains it."
    )
    retriever_file: str | Mapping[str, str] | None = key(
        None,
        optional(EVALUATION_FILES),
        "With retriever: file, each user's candidates with scores (.tsv, .parquet or TREC's .run): "
        "one file for validation and test, or {valid: FILE, test: FILE}.",
    )
