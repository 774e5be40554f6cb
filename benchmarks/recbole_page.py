"""Results in the form of RecBole's benchmark pages, ``python benchmarks/recbole_page.py``.

Reads the stored cells of suites and writes ``benchmarks/results/RECBOLE.md``: the data sets'
statistics, the experimental settings, and for each suite and data set the metrics and the
hyper-parameters with the ranges that were tried. Nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results import Results, read_cells, write_whole
from suite import ModelPlan, Suite, read_suite
from tables import Groups, Row, markdown_table, rows_of, suite_groups, tested

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout that is not installed

import recbole_llamarec  # noqa: E402, F401  which registers the model and its data sets
from recbole_llamarec.integration.values import config_from_values  # noqa: E402

SUITES = ("paper", "ranker", "retrievers")
METRICS = {  # RecBole's columns
    "recall@10": "Recall@10",
    "mrr@10": "MRR@10",
    "ndcg@10": "NDCG@10",
    "hit@10": "Hit@10",
    "precision@10": "Precision@10",
}
CUT_OFF = 10
FILTERS = ("user_inter_num_interval", "item_inter_num_interval")
SETTINGS = ("exact_chronology", "rerank_mask_seen", "MAX_ITEM_LIST_LENGTH")
ONE_TARGET = (
    f"A test row has one target, so that Hit@{CUT_OFF} is Recall@{CUT_OFF}, and "
    f"Precision@{CUT_OFF} is Recall@{CUT_OFF} divided by {CUT_OFF}; where a cell has them not, "
    "they are computed so."
)


@dataclass(frozen=True)
class StoredSuite:
    """A suite with the lines of its finished cells, by id."""

    suite: Suite
    results: Results

    @classmethod
    def read(cls, file: Path, out: Path) -> StoredSuite:
        """Read a suite's file and the folder of its results."""
        suite = read_suite(file)
        return cls(suite, suite.finished(read_cells(out)))

    @property
    def groups(self) -> Groups:
        """For each data set and model that was tested, its cells at every seed."""
        return tested(suite_groups(self.suite, self.results))


def page(suites: Sequence[StoredSuite]) -> str:
    """The whole page in Markdown."""
    datasets = dict.fromkeys(dataset for own in suites for dataset, _ in own.groups)
    parts = [
        "# Results in RecBole's form",
        "Made by `python benchmarks/recbole_page.py` from the cells of the suites "
        f"{', '.join(own.suite.name for own in suites)}; mean ± standard deviation where a cell "
        "was run with several seeds.",
        "## Data set statistics",
        statistics_table(suites),
        "## Experimental settings",
        ONE_TARGET,
        *(f"### {dataset}\n\n{settings_list(dataset)}" for dataset in datasets),
    ]
    for own in suites:
        parts.append(f"## Suite {own.suite.name}")
        for dataset in dict.fromkeys(name for name, _ in own.groups):
            groups = {key: cells for key, cells in own.groups.items() if key[0] == dataset}
            parts += [
                f"### {dataset}",
                metrics_table(groups),
                "Hyper-parameters; the best of a range is that of the best "
                f"{own.suite.run_settings['valid_metric']} on validation.",
                parameters_table(own.suite, dataset, groups),
            ]
    return "\n\n".join(parts) + "\n"


def statistics_table(suites: Sequence[StoredSuite]) -> str:
    """Users, items and interactions of each data set after filtering."""
    rows: dict[tuple[str, ...], None] = {}
    for own in suites:
        for (dataset, _), cells in own.groups.items():
            users, items, interactions = (
                cells[0]["split"][name] for name in ("users", "items", "interactions")
            )
            sparsity = 1 - interactions / (users * items)
            counts = (f"{count:,}" for count in (users, items, interactions))
            rows[dataset, *counts, f"{sparsity:.2%}"] = None
    return markdown_table(["Dataset", "#Users", "#Items", "#Interactions", "Sparsity"], rows)


def settings_list(dataset: str) -> str:
    """Filtering, split and evaluation of a data set, as its property files set them."""
    config = config_from_values("LlamaRec", dataset, {})
    arguments = config["eval_args"]
    filters = [f"`{key}: {config[key]}`" for key in FILTERS if config[key]]
    lines = [
        f"- filtering: {', '.join(filters) or 'none'}",
        f"- split: `{arguments['split']}`, grouped by {arguments['group_by']}, order "
        f"{arguments['order']}",
        f"- evaluation: ranking of the {shown_mode(arguments['mode'])} catalogue",
        "- " + ", ".join(f"`{key}: {config[key]}`" for key in SETTINGS) + " where a method sets "
        "none of its own",
    ]
    return "\n".join(lines)


def shown_mode(mode: str | Mapping[str, str]) -> str:
    """RecBole's evaluation mode, one word where all parts have the same."""
    values = {mode} if isinstance(mode, str) else set(mode.values())
    return " / ".join(sorted(values))


def metrics_table(groups: Groups) -> str:
    """RecBole's metrics of each method; stages of a method are methods of their own."""
    rows = [with_one_target(row) for row in rows_of(groups, "test")]
    model = {title: cells[0]["model"] for (_, title), cells in groups.items()}
    body = [[method(row.model, model), *(row.text(metric) for metric in METRICS)] for row in rows]
    return markdown_table(["Method", *METRICS.values()], body)


def method(title: str, models: Mapping[str, str]) -> str:
    """What the page calls a model or a stage of it: by the model's name, whatever its label.

    Args:
        title: what the suite's tables call it.
        models: name of the model by its label.
    """
    model = models[title.split(": ")[0]]
    return title if title.startswith(model) else f"{model} {title}"


def with_one_target(row: Row) -> Row:
    """A row with the metrics that follow from its recall, where it has them not."""
    recall = row.ours[f"recall@{CUT_OFF}"]
    derived = {
        f"hit@{CUT_OFF}": recall,
        f"precision@{CUT_OFF}": [value / CUT_OFF for value in recall],
    }
    return replace(row, ours={**derived, **row.ours})


def parameters_table(suite: Suite, dataset: str, groups: Groups) -> str:
    """Each method's hyper-parameters, and the ranges of those that were searched for."""
    body = []
    for plan in suite.plans[dataset]:
        if (dataset, plan.title) not in groups:
            continue
        line = groups[dataset, plan.title][0]
        given = {**line["settings"], **line["run_settings"]}
        own = {key: given[key] for key in given if key not in suite.run_settings}
        best = ", ".join(f"{key}={value}" for key, value in own.items())
        name = method(plan.title, {plan.title: plan.name})
        body.append([name, best or "defaults", ranges(plan)])
    return markdown_table(["Method", "Best hyper-parameters", "Ranges tried"], body)


def ranges(plan: ModelPlan) -> str:
    """The values of each key of a grid; a dash where nothing was searched for."""
    names: list[str] = list(plan.grid[0])
    values: dict[str, list[Any]] = {
        name: list(dict.fromkeys(choice[name] for choice in plan.grid)) for name in names
    }
    searched = [f"{name} in {tried}" for name, tried in values.items() if len(tried) > 1]
    return "; ".join(searched) or "–"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", nargs="+", default=list(SUITES), help="names of suites")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="their folders")
    options = parser.parse_args(arguments)
    try:
        suites = [
            StoredSuite.read(HERE / "suites" / f"{name}.yaml", options.results / name)
            for name in options.suites
        ]
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    file = options.results / "RECBOLE.md"
    write_whole(file, page(suites).encode())
    print(file)


if __name__ == "__main__":
    main()
