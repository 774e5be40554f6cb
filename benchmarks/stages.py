"""The stages of a run under their names: all that benchmarks/ knows of the package's reports.

A stage is an order of the candidates: the retriever's ("LRURec"), the retriever's fused with
scorers ("LRURec + evidence"), a scorer's alone ("likelihood"), and the one that counts ("final").
A mapping over stages begins with the retriever and ends with the final stage. Names are the
package's, but for the final stage, which the package names after what decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

FINAL = "final"
DEFAULT_METHOD = "verbalizer"
EVIDENCE = "evidence"
RANK = "rank"
USER = "user_id"  # its column in the package's table of users
Metrics = Mapping[str, float]


def stage_names(stages: Sequence[str]) -> dict[str, str]:
    """The names of stages in results, by what the package calls them.

    Args:
        stages: the package's names, in the order of its tables.

    Returns:
        all of them in order, but for the retriever fused with every scorer, which is the final
        stage once more. A retriever alone is the final stage itself.
    """
    retriever, *others = stages
    if not others:
        return {retriever: FINAL}
    final = others.pop()
    fused = [name for name in others if name.startswith(f"{retriever} + ")]
    kept = [name for name in (retriever, *others) if name not in fused[-1:]]
    return {**{name: name for name in kept}, final: FINAL}


def tested_stages(report: Any) -> dict[str, dict[str, Metrics]]:
    """Metrics of each stage on the test set.

    Args:
        report: the package's ``EvaluationReport``.

    Returns:
        ``test`` over all rows, and ``retrieved`` over those whose target is a candidate.
    """
    return {
        "test": _renamed({stage.name: stage.metrics for stage in report.stages}),
        "retrieved": _renamed({stage.name: stage.metrics for stage in report.retrieved_stages()}),
    }


def validated_stages(stages: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """Metrics of each stage on the rows of validation that the fusion was fitted on.

    Args:
        stages: the ``validation`` of the package's ``Journal``; empty where nothing was fitted.
    """
    return _renamed(stages) if stages else {}


def users_table(users: pd.DataFrame, stages: Sequence[str]) -> pd.DataFrame:
    """Each user's rank and metrics in each stage, from the package's table of users.

    Args:
        users: a row for each user; the columns of a stage are ``rank:<stage>`` and
            ``<metric>@<k>:<stage>``.
        stages: the package's names.

    Returns:
        columns ``user``, and for each stage ``rank:<stage>`` and ``<metric>@<k>:<stage>``.
    """
    names = stage_names(stages)
    columns = {USER: "user"}
    for column in users:
        value, _, stage = column.partition(":")
        if stage in names and (value == RANK or "@" in value):
            columns[column] = f"{value}:{names[stage]}"
    return users[list(columns)].rename(columns=columns)


def fusion_summary(fusion: Any) -> dict[str, Any] | None:
    """How the weights of the ranker and of evidence were fitted.

    Args:
        fusion: the package's ``Fusion``.

    Returns:
        the ranker's ``weight``, ``gain`` (nats a row) and ``p_value`` beside what was let in before
        it; ``n_rows``; and ``evidence`` with the same and its weight ``without_ranker``, ``None``
        where it is no scorer. ``None`` where nothing was fitted.
    """
    steps = {step.scorer: step for step in fusion.steps}
    if not steps:
        return None
    first = steps.pop(EVIDENCE, None)
    evidence = None
    if first is not None:
        evidence = {
            "weight": fusion.weights[EVIDENCE],
            "without_ranker": first.weights[EVIDENCE],
            "gain": first.gain,
            "p_value": first.p_value,
        }
    ranker = {"weight": 0.0, "gain": 0.0, "p_value": 1.0}
    if steps:
        last = list(steps.values())[-1]
        weight = fusion.weights[last.scorer]
        ranker = {"weight": weight, "gain": last.gain, "p_value": last.p_value}
    return {**ranker, "n_rows": fusion.n_rows, "evidence": evidence}


def compared_stages(stages: Sequence[str]) -> list[tuple[str, str]]:
    """Which stage is tested against which: what the final one adds, and each against the retriever.

    Args:
        stages: names, the retriever's first and the final one last.

    Returns:
        pairs (stage, the stage it is compared with): the final one against the retriever and
        what is fused with it, then what is fused and each scorer alone against the retriever.
    """
    *parts, _ = stages
    final = [(FINAL, stage) for stage in parts if stage.startswith(parts[0])]
    return [*final, *((stage, parts[0]) for stage in parts[1:])]


def described(stage: str, retriever: str) -> str:
    """A stage's name in a table: that of a scorer says that the scorer orders alone."""
    return stage if stage == FINAL or stage.startswith(retriever) else f"{stage} alone"


def _renamed(stages: Mapping[str, Metrics]) -> dict[str, Any]:
    names = stage_names(list(stages))
    return {name: dict(stages[stage]) for stage, name in names.items()}
