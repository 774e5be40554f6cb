"""The stages of a run under their names: all that benchmarks/ knows of the package's reports.

A stage is an order of the candidates: the retriever's ("LRURec"), the retriever's fused with a
scorer ("LRURec + evidence"), a scorer's alone ("likelihood"), and the one that counts ("final").
A mapping over stages begins with the retriever and ends with the final stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

FINAL = "final"
DEFAULT_METHOD = "verbalizer"
USER = "user_id"  # its column in the package's table of users
Metrics = Mapping[str, float]


def stage_names(retriever: str, ranking_method: str) -> dict[str, str]:
    """The names of stages, by what the package's reports call them.

    Args:
        retriever: the retriever's class name.
        ranking_method: the key's value.
    """
    if ranking_method == "none":
        return {"llamarec": FINAL}
    return {
        "retriever": retriever,
        "evidence": f"{retriever} + evidence",
        "ranker": ranking_method,
        "llamarec": FINAL,
    }


def tested_stages(report: Any, names: Mapping[str, str]) -> dict[str, dict[str, Metrics]]:
    """Metrics of each stage on the test set.

    Returns:
        ``test`` over all rows, and ``retrieved`` over those whose target is a candidate.
    """
    test = {
        "retriever": report.retriever,
        "evidence": report.evidence,
        "ranker": report.ranker,
        "llamarec": report.llamarec or report.retriever,
    }
    retrieved = {
        "retriever": report.retriever_on_retrieved,
        "llamarec": report.llamarec_on_retrieved or report.retriever_on_retrieved,
    }
    return {"test": _renamed(test, names), "retrieved": _renamed(retrieved, names)}


def validated_stages(stages: Mapping[str, Metrics], names: Mapping[str, str]) -> dict[str, Metrics]:
    """Metrics of each stage on the rows of validation that the fusion was fitted on."""
    journal = {"with evidence": "evidence", "fused": "llamarec"}
    return _renamed({journal.get(name, name): of for name, of in stages.items()}, names)


def users_table(users: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Each user's rank and metrics in each stage, from the package's table of users.

    Args:
        users: a row for each user; the columns of a stage are ``<stage>_rank`` and
            ``<stage>_<metric>@<k>``.
        names: from :func:`stage_names`.

    Returns:
        columns ``user``, and for each stage ``rank:<stage>`` and ``<metric>@<k>:<stage>``.
    """
    columns = {USER: "user"}
    for column in users:
        stage, _, value = column.partition("_")
        if stage in names:
            columns[column] = f"{value}:{names[stage]}"
    return users[list(columns)].rename(columns=columns)


def compared_stages(stages: Sequence[str]) -> list[tuple[str, str]]:
    """Which stage is tested against which: what the final one adds, and each scorer alone.

    Args:
        stages: names, the retriever's first.

    Returns:
        pairs (stage, the stage it is compared with): the final one against the retriever and
        what is fused with it, a scorer alone against the retriever.
    """
    retriever = stages[0]
    return [
        (FINAL, stage) if stage.startswith(retriever) else (stage, retriever)
        for stage in stages
        if stage != FINAL
    ]


def described(stage: str, retriever: str) -> str:
    """A stage's name in a table: that of a scorer says that the scorer orders alone."""
    return stage if stage == FINAL or stage.startswith(retriever) else f"{stage} alone"


def _renamed(stages: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {name: dict(stages[stage]) for stage, name in names.items() if stages.get(stage)}
