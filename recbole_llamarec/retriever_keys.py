"""The YAML keys of the retriever, and what those of a table of candidates must fulfil together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llamarec.command_line_values import remedy
from recbole_llamarec.integration.known import FILE_RETRIEVER, IN_CHECKPOINT
from recbole_llamarec.keys import MAPPING, NAME, any_of, key, mapping_of, optional, shown
from recbole_llamarec.path_rules import FILE
from recbole_llamarec.retrieval.candidate_file import PARTS, READERS, files_of


@dataclass(frozen=True)
class RetrieverKeys:
    """LlamaRec's keys of the first stage."""

    retriever: str = key(
        "LRURec",
        NAME,
        "Any of RecBole's sequential recommenders, by class name; or file: another recommender's "
        "candidates, which retriever_file gives.",
    )
    retriever_config: Mapping[str, Any] | None = key(
        None, optional(MAPPING), "RecBole keys on top of the retriever's own defaults."
    )
    retriever_checkpoint: str | None = key(
        None, optional(FILE), "A checkpoint of this retriever on this data; ~ trains it."
    )
    retriever_file: str | Mapping[str, str] | None = key(
        None,
        optional(any_of(FILE, mapping_of(dict.fromkeys(PARTS, FILE), PARTS))),
        "With retriever: file, a table of user, item and score (.tsv, .parquet, or .run in TREC "
        "form), or a mapping of valid and test to one each; see docs/data.md.",
    )


def _retriever_file_can_be_read(
    retriever: str, retriever_file: str | Mapping[str, str] | None
) -> list[str]:
    if retriever != FILE_RETRIEVER:
        if retriever_file is None:
            return []
        return [
            f"retriever_file: {shown(retriever_file)} is read with retriever: {FILE_RETRIEVER}, "
            f"but retriever is {retriever!r}. Change one of them."
        ]
    if retriever_file is None:
        return [f"retriever_file: name the table of candidates for retriever: {FILE_RETRIEVER}."]
    if retriever_file == IN_CHECKPOINT:
        return []
    errors = []
    for file in files_of(retriever_file):
        if file.suffix not in READERS:
            errors.append(
                f"retriever_file: {str(file)!r} must end with {', '.join(READERS)}, which says how "
                "it is read." + remedy("retriever_file", retriever_file)
            )
        elif not file.is_file():
            errors.append(f"retriever_file: there is no file {str(file)!r}; check the path.")
    return errors


def _retriever_file_is_all_there_is(
    retriever: str,
    retriever_config: Mapping[str, Any] | None,
    retriever_checkpoint: str | None,
    train_candidates: str,
) -> list[str]:
    """Tables have candidates for evaluation rows alone, and nothing that is trained."""
    if retriever != FILE_RETRIEVER:
        return []
    errors = []
    for name, value in (
        ("retriever_config", retriever_config),
        ("retriever_checkpoint", retriever_checkpoint),
    ):
        if value:
            errors.append(
                f"{name}: {shown(value)} is of a retriever that is trained, which retriever: "
                f"{FILE_RETRIEVER} is not. Leave it out."
            )
    if train_candidates in ("retriever", "retrieved"):
        errors.append(
            f"train_candidates: {train_candidates} needs candidates for training rows, which "
            f"retriever: {FILE_RETRIEVER} has not. Set train_candidates: random or popular."
        )
    return errors


def _retriever_file_tells_the_parts(
    retriever_file: str | Mapping[str, str] | None, eval_args: Mapping[str, Any]
) -> list[str]:
    """A row is of the test if it is the user's last choice."""
    split = eval_args.get("split")
    if not isinstance(retriever_file, Mapping) or split == {"LS": "valid_and_test"}:
        return []
    return [
        f"retriever_file: tables for valid and test need eval_args with split: {{'LS': "
        f"'valid_and_test'}}, but it is {split!r}. Name one table for both."
    ]


FILE_CHECKS: tuple[Callable[..., list[str]], ...] = (
    _retriever_file_can_be_read,
    _retriever_file_is_all_there_is,
    _retriever_file_tells_the_parts,
)
