"""Paired tests of one stage against another, over users."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from results import Line
from stages import compared_stages, described
from tables import Groups, common_stages, markdown_table, tested

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.evaluation.statistics import paired_test


def significance(
    cells: Sequence[Line], users: pd.DataFrame, stage: str, before: str
) -> dict[str, dict[str, float]]:
    """One stage against another: each user's metrics, averaged over seeds, in a paired test.

    Args:
        cells: a model's cells on one data set, one for each seed.
        users: from :func:`results.read_users`.
        stage: a stage's name.
        before: the name of the stage that it is compared with.

    Returns:
        for each metric the mean difference, the two-sided paired t-test's p and the number of
        users; nothing where the users of a cell are missing.
    """
    of_cells = users[users["cell"].isin([cell["id"] for cell in cells])]
    means = of_cells.groupby("user").mean(numeric_only=True)
    result = {}
    for metric in cells[0]["test"][stage]:
        columns = [f"{metric}:{name}" for name in (before, stage)]
        if not set(columns) <= set(users):
            return {}
        if of_cells.dropna(subset=columns)["cell"].nunique() < len(cells):
            return {}
        difference, p_value = paired_test(*(means[column] for column in columns))
        result[metric] = {"difference": difference, "p": p_value, "users": len(means)}
    return result


def markdown_significance(groups: Groups, users: pd.DataFrame) -> str:
    """LlamaRec against its retriever and its parts, on each data set."""
    parts = []
    for (dataset, model), cells in tested(groups).items():
        stages = common_stages(cells)
        tests = {
            _difference_of(stage, before, retriever=stages[0]): test
            for stage, before in compared_stages(stages)
            if (test := significance(cells, users, stage, before))
        }
        if tests:
            first = next(iter(tests.values()))
            head = ["metric", *(text for name in tests for text in (name, "p"))]
            body = [
                [metric, *(text for test in tests.values() for text in _texts(test[metric]))]
                for metric in first
            ]
            n_users = next(iter(first.values()))["users"]
            parts.append(
                f"### {model}, {dataset}\n\n{n_users} users, seeds: {len(cells)}.\n\n"
                + markdown_table(head, body)
            )
    return "\n\n".join(parts)


def _difference_of(stage: str, before: str, retriever: str) -> str:
    subtracted = before if before == retriever else f"({before})"
    return f"{described(stage, retriever)} - {subtracted}"


def _texts(test: Mapping[str, float]) -> tuple[str, str]:
    return f"{test['difference']:+.4f}", f"{test['p']:.2g}"
