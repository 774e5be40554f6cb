"""Tables of a suite in Markdown, from the lines of its finished cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from results import Line, Results
from stages import FINAL, described
from suite import Cell, Suite, best_choice
from validation_table import HEAD, validation_rows

PAPER = "LlamaRec 2023"
PUBLISHED = Path(__file__).resolve().parent / "published.yaml"
IN_TABLE_3 = ("LRURec", "LlamaRec")
Groups = Mapping[tuple[str, str], Sequence[Line]]  # by data set and title: a cell for each seed


# --- which cells stand behind a row ---------------------------------------------------------------


def suite_groups(suite: Suite, results: Results) -> dict[tuple[str, str], list[Line]]:
    """For each data set and model of a suite, its chosen cell at every seed."""
    groups = {}
    for dataset, plans in suite.plans.items():
        for plan in plans:
            grid, others = suite.cells_of(dataset, plan, results)
            best = best_choice(grid, results)
            finished = [
                results[cell.id]
                for cell in [*grid, *others]
                if cell.choice == best and cell.id in results
            ]
            if finished:
                groups[dataset, plan.title] = finished
    return groups


def retired_groups(retired: Results) -> dict[tuple[str, str], list[Line]]:
    """For each data set and label of retired cells, those of every seed."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in retired.values():
        title = ", ".join([title_of(line), *chosen(line)])
        groups.setdefault((line["dataset"], title), []).append(line)
    return groups


def tested(groups: Groups) -> Groups:
    """The groups whose cells were tested."""
    return {key: cells for key, cells in groups.items() if not cells[0]["validation_only"]}


def title_of(line: Line) -> str:
    """What tables call a cell."""
    return line["label"] or line["model"]


def chosen(line: Line) -> list[str]:
    """The grid's values in a cell, each with the first of its keys."""
    return [f"{keys.split(',')[0]} {value}" for keys, value in line["choice"].items()]


# --- rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One stage of a model on one data set, over its seeds.

    Attributes:
        dataset, model: names.
        ours: for each metric its value at each seed.
        published: for each metric the paper's value, where there is one.
        notes: what else a reader needs, in the order of the page's columns.
    """

    dataset: str
    model: str
    ours: Mapping[str, list[float]]
    published: Mapping[str, float]
    notes: Mapping[str, str]

    def mean(self, metric: str) -> float:
        return statistics.mean(self.ours[metric])

    def text(self, metric: str) -> str:
        """Mean, and the standard deviation over seeds where there are several."""
        values = self.ours[metric]
        deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{self.mean(metric):.4f}{deviation}"

    def ratio(self, metric: str) -> str:
        """Ours divided by the paper's."""
        published = self.published.get(metric)
        return f"{self.mean(metric) / published:.2f}" if published else "–"


def rows_of(groups: Groups, key: str, table: str = "") -> list[Row]:
    """The rows of one table.

    Args:
        groups: which cells make a row.
        key: what to read of a line: ``test``, or ``retrieved`` for the valid retrieval subset. The
            test has a row for each further stage that all seeds have, except the retriever's,
            which is a model of its own.
        table: the paper's table in published.yaml that stands beside it.
    """
    published = read_published()[PAPER].get(table, {})
    rows = []
    for (dataset, model), cells in tested(groups).items():
        notes = notes_of(cells)
        figures = published.get(dataset, {}).get(model, {})
        rows.append(Row(dataset, model, values_of(cells, key, FINAL), figures, notes))
        retriever, *others = common_stages(cells)
        for stage in others[:-1] if key == "test" else ():
            values = values_of(cells, key, stage)
            rows.append(Row(dataset, f"{model}: {described(stage, retriever)}", values, {}, notes))
    return rows


def common_stages(cells: Sequence[Line]) -> list[str]:
    """Names of the stages that the tests of all these cells have, in order."""
    return [stage for stage in cells[0]["test"] if all(stage in cell["test"] for cell in cells)]


def values_of(cells: Sequence[Line], key: str, stage: str) -> dict[str, list[float]]:
    """Each metric of a stage at each seed."""
    return {metric: [cell[key][stage][metric] for cell in cells] for metric in cells[0][key][stage]}


def notes_of(cells: Sequence[Line]) -> dict[str, str]:
    """Seeds, chosen settings, epochs, time and memory of the cells behind a row."""
    minutes = [cell["seconds"]["train"] / 60 for cell in cells]
    return {
        "seeds": str(len(cells)),
        "chosen": ", ".join(chosen(cells[0])) or "–",
        "validations": " / ".join(str(len(cell["curve"])) for cell in cells),
        "training, min": " / ".join(f"{value:.1f}" for value in minutes),
        "threads": str(cells[0]["threads"]),
        "peak memory, MB": str(max(cell["peak_memory_mb"] for cell in cells)),
    }


def read_published() -> dict[str, Any]:
    """Figures as published, from published.yaml."""
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


# --- tables -------------------------------------------------------------------------------------


def table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join([table_line(head), "|" + "---|" * len(head), *map(table_line, body)])


def markdown_comparison(rows: Sequence[Row]) -> str:
    """Ours beside the published figures, with the ratio, for each data set."""
    parts = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        of_dataset = [row for row in rows if row.dataset == dataset]
        metrics = list(of_dataset[0].ours)
        body = []
        for row in of_dataset:
            published = [f"{row.published[m]:.4f}" if m in row.published else "–" for m in metrics]
            body.append([row.model, "ours", *(row.text(m) for m in metrics)])
            if row.published:
                body.append(["", "published", *published])
                body.append(["", "ratio", *(row.ratio(m) for m in metrics)])
        parts.append(f"### {dataset}\n\n" + markdown_table(["model", "", *metrics], body))
    return "\n\n".join(parts)


def markdown_retrieved(groups: Groups) -> str:
    """The paper's Table 3: metrics over the test users whose target is a candidate."""
    of_paper = {key: cells for key, cells in tested(groups).items() if key[1] in IN_TABLE_3}
    if not of_paper:
        return ""
    counts = "; ".join(
        f"{dataset}, {model}: " + " / ".join(f"{c['n_retrieved']} of {c['n_rows']}" for c in cells)
        for (dataset, model), cells in of_paper.items()
    )
    return f"Test users whose target is among the candidates: {counts}.\n\n" + markdown_comparison(
        rows_of(of_paper, "retrieved", "table_3")
    )


def markdown_notes(groups: Groups) -> str:
    """What each row of the test was made of."""
    rows = rows_of(groups, "test")
    if not rows:
        return ""
    head = ["data set", "model", *rows[0].notes]
    return markdown_table(head, [[r.dataset, r.model, *r.notes.values()] for r in rows])


def markdown_reported(groups: Groups) -> str:
    """Other LLM-based recommenders as the paper reports them, and ours."""
    rows = [row for row in rows_of(groups, "test") if row.model in IN_TABLE_3]
    parts = []
    for dataset, models in read_published()[PAPER].get("table_4", {}).items():
        ours = [row for row in rows if row.dataset == dataset]
        if dataset not in {of for of, _ in tested(groups)}:
            continue
        metrics = list(dict.fromkeys(metric for values in models.values() for metric in values))
        reported = {
            f"{name} (as reported)": {m: f"{value:.4f}" for m, value in values.items()}
            for name, values in models.items()
        }
        own = {f"{row.model} (ours)": {m: row.text(m) for m in row.ours} for row in ours}
        body = [
            [name, *(values.get(m, "–") for m in metrics)]
            for name, values in {**reported, **own}.items()
        ]
        parts.append(f"### {dataset}\n\n" + markdown_table(["model", *metrics], body))
    return "\n\n".join(parts)


def markdown_splits(results: Results) -> str:
    """The counts of each data set (the paper's Table 2) and the digest of its split."""
    splits: dict[str, dict[str, Any]] = {}  # by digest
    models: dict[str, dict[str, None]] = {}
    for line in results.values():
        digest = line["split"]["sha256"]
        splits[digest] = {**line["split"], "dataset": line["dataset"]}
        models.setdefault(digest, {})[title_of(line)] = None
    head = ["data set", "users", "items", "interactions", "mean length", "SHA-256 of the split", ""]
    body = [
        [split["dataset"], *(str(split[k]) for k in ("users", "items", "interactions"))]
        + [f"{split['mean_length']:.2f}", f"`{digest}`", ", ".join(models[digest])]
        for digest, split in splits.items()
    ]
    return markdown_table(head, body)


def markdown_grids(suite: Suite, results: Results) -> str:
    """Validation scores of every grid."""
    parts = []
    for dataset, plans in suite.plans.items():
        for plan in plans:
            cells: list[Cell] = suite.cells_of(dataset, plan, results)[0]
            body = [
                [
                    *map(str, cell.choice.values()),
                    f"{results[cell.id]['valid_score']:.4f}",
                    str(len(results[cell.id]["curve"])),
                ]
                for cell in cells
                if len(plan.grid) > 1 and cell.id in results
            ]
            if body:
                names = [keys.split(",")[0] for keys in plan.grid[0]]
                head = [*names, f"valid {suite.run_settings['valid_metric']}", "epochs"]
                parts.append(f"### {plan.title}, {dataset}\n\n" + markdown_table(head, body))
    return "\n\n".join(parts)


def markdown_curves(groups: Groups) -> str:
    """Validation score over training, at the first seed, of at most a dozen points a model."""
    body = []
    for (dataset, model), cells in tested(groups).items():
        curve = cells[0]["curve"]
        step = -(-len(curve) // 12)
        points = [
            f"{number}: {score:.4f} ({seconds / 60:.1f} min)"
            for number, (seconds, score) in enumerate(curve, start=1)
            if number % step == 0 or number == len(curve)
        ]
        body.append([dataset, model, ", ".join(points)])
    head = ["data set", "model", "validation: score (time since the start)"]
    return markdown_table(head, body) if body else ""


def markdown_validation(groups: Groups, metric: str) -> str:
    """What each setting that was not tested came to on validation, for each data set."""
    by_dataset: dict[str, list[Line]] = {}
    for (dataset, _), cells in groups.items():
        if cells[0]["validation_only"]:
            by_dataset.setdefault(dataset, []).extend(cells)
    parts = []
    for dataset, cells in by_dataset.items():
        table = markdown_table(HEAD, validation_rows(cells, metric))
        parts.append(f"### {dataset}, {metric}\n\n{table}")
    return "\n\n".join(parts)
