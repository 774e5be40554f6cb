"""The tables of a suite, from its finished cells: Markdown, JSON and LaTeX."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from suite import Cell, Suite, best_choice, users_file
from validation_table import HEAD, validation_rows

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.evaluation import paired_test

HERE = Path(__file__).resolve().parent
PAPER = "LlamaRec 2023"
STAGES = {"evidence": "without its language model", "ranker": "its ranker alone"}
COMPARED = (
    ("llamarec", "evidence", "LlamaRec - the same without its language model"),
    ("ranker", "retriever", "its ranker alone - retriever"),
)
Results = Mapping[str, Mapping[str, Any]]
Cells = list[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One model on one data set, over its seeds.

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
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{self.mean(metric):.4f}{spread}"

    def ratio(self, metric: str) -> str:
        """Ours through the paper's."""
        published = self.published.get(metric)
        return f"{self.mean(metric) / published:.2f}" if published else "–"


def final_results(
    suite: Suite, results: Results, validation_only: bool = False
) -> dict[tuple[str, str], Cells]:
    """What stands in tables: for each data set and model, its chosen cell at every seed.

    Args:
        validation_only: those that were not tested, and no others.
    """
    chosen: dict[tuple[str, str], Cells] = {}
    for dataset, plans in suite.plans.items():
        for plan in plans:
            if plan.validation_only != validation_only:
                continue
            grid, others = suite.cells_of(dataset, plan, results)
            best = best_choice(grid, results)
            finished = [
                results[cell.identifier]
                for cell in [*grid, *others]
                if cell.choice == best and cell.identifier in results
            ]
            if finished:
                chosen[dataset, plan.title] = finished
    return chosen


def rows_of(suite: Suite, results: Results, key: str, table: str) -> list[Row]:
    """The rows of one table.

    Args:
        key: what to read of a result: ``test``, or ``retrieved`` for the valid retrieval subset.
        table: the paper's table in published.yaml that stands beside it.
    """
    published = read_published()[PAPER].get(table, {})
    rows = []
    for (dataset, model), cells in final_results(suite, results).items():
        metrics = [metric for metric in cells[0]["test"] if metric in cells[0][key]]
        rows.append(
            Row(
                dataset,
                model,
                {metric: [cell[key][metric] for cell in cells] for metric in metrics},
                published.get(dataset, {}).get(model, {}),
                notes_of(cells),
            )
        )
        for stage, name in STAGES.items() if key == "test" else ():
            part = f"test_{stage}"
            if all(cell.get(part) for cell in cells):  # they are fused
                of_stage = {metric: [cell[part][metric] for cell in cells] for metric in metrics}
                rows.append(Row(dataset, f"{model}: {name}", of_stage, {}, notes_of(cells)))
    return rows


def notes_of(cells: Cells) -> dict[str, str]:
    """Seeds, chosen settings, epochs, time and memory of the cells behind a row."""
    choice = ", ".join(f"{k.split(',')[0]} {v}" for k, v in cells[0]["cell"]["choice"].items())
    minutes = [cell["seconds"]["train"] / 60 for cell in cells]
    return {
        "seeds": str(len(cells)),
        "chosen": choice or "–",
        "validations": " / ".join(str(len(cell["curve"])) for cell in cells),
        "training, min": " / ".join(f"{value:.1f}" for value in minutes),
        "threads": str(cells[0]["threads"]),
        "peak memory, MB": str(max(cell["peak_memory_mb"] for cell in cells)),
    }


def read_published() -> dict[str, Any]:
    """Figures as published, from published.yaml."""
    return yaml.safe_load((HERE / "published.yaml").read_text(encoding="utf-8"))


# --- significance -------------------------------------------------------------------------------


def significance(
    cells: Cells, out: Path, stage: str = "llamarec", before: str = "retriever"
) -> dict[str, dict[str, float]]:
    """One stage against another: each user's metrics, averaged over seeds, in a paired test.

    Args:
        cells: LlamaRec's results on one data set.
        out: folder of results.
        stage: ``llamarec``, or one of :data:`STAGES`.
        before: what it is compared with, ``retriever`` or ``evidence``.

    Returns:
        for each metric the mean difference and the two-sided paired t-test's p; nothing where a
        per-user file is missing.
    """
    files = [users_file(out, Cell(**cell["cell"]).identifier) for cell in cells]
    if not all(file.is_file() for file in files):
        return {}
    tables = [pd.read_csv(file, dtype={"user_id": str, "item_id": str}) for file in files]
    users = pd.concat(tables).groupby("user_id").mean(numeric_only=True)
    result = {}
    for metric in cells[0]["test"]:
        if not all({f"{stage}_{metric}", f"{before}_{metric}"} <= set(table) for table in tables):
            return {}
        pair = users[f"{before}_{metric}"], users[f"{stage}_{metric}"]
        difference, p_value = paired_test(*pair)
        result[metric] = {"difference": difference, "p": p_value, "users": len(users)}
    return result


# --- pages --------------------------------------------------------------------------------------


def grid_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown_table(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join([grid_line(head), "|" + "---|" * len(head), *map(grid_line, body)])


def markdown_comparison(rows: list[Row]) -> str:
    """Ours beside the published figures, with the ratio, for each data set."""
    parts = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        metrics = list(own[0].ours)
        body = []
        for row in own:
            published = [f"{row.published[m]:.4f}" if m in row.published else "–" for m in metrics]
            body.append([row.model, "ours", *(row.text(m) for m in metrics)])
            if row.published:
                body.append(["", "published", *published])
                body.append(["", "ratio", *(row.ratio(m) for m in metrics)])
        parts.append(f"### {dataset}\n\n" + markdown_table(["model", "", *metrics], body))
    return "\n\n".join(parts)


def markdown_notes(rows: list[Row]) -> str:
    """What each row was made of."""
    head = ["data set", "model", *rows[0].notes]
    return markdown_table(head, [[r.dataset, r.model, *r.notes.values()] for r in rows])


def markdown_significance(suite: Suite, results: Results, out: Path) -> str:
    """LlamaRec against its retriever, on each data set."""
    parts = []
    for (dataset, model), cells in final_results(suite, results).items():
        is_ranker = cells[0]["cell"]["model"] == "LlamaRec"
        tests = significance(cells, out) if is_ranker else {}
        if tests:
            users = next(iter(tests.values()))["users"]
            head, columns = ["metric", "LlamaRec - retriever", "p"], [tests]
            for stage, before, name in COMPARED:
                if others := significance(cells, out, stage, before):
                    head, columns = [*head, name, "p"], [*columns, others]
            body = [
                [metric, *(text for of in columns for text in _difference(of[metric]))]
                for metric in tests
            ]
            parts.append(
                f"### {model}, {dataset}\n\n{users} users, seeds: {len(cells)}.\n\n"
                + markdown_table(head, body)
            )
    return "\n\n".join(parts)


def _difference(test: Mapping[str, float]) -> tuple[str, str]:
    return f"{test['difference']:+.4f}", f"{test['p']:.2g}"


def markdown_reported(published: Mapping[str, Any], rows: list[Row]) -> str:
    """Other LLM-based recommenders as the paper reports them, and ours."""
    reported = published[PAPER].get("table_4", {})
    parts = []
    for dataset, models in reported.items():
        if dataset not in {row.dataset for row in rows}:
            continue
        metrics = list(dict.fromkeys(metric for values in models.values() for metric in values))
        body = [
            [
                f"{name} (as reported)",
                *(f"{values[m]:.4f}" if m in values else "–" for m in metrics),
            ]
            for name, values in models.items()
        ]
        body += [
            [f"{row.model} (ours)", *(row.text(m) if m in row.ours else "–" for m in metrics)]
            for row in rows
            if row.dataset == dataset and row.model in ("LRURec", "LlamaRec")
        ]
        parts.append(f"### {dataset}\n\n" + markdown_table(["model", *metrics], body))
    return "\n\n".join(parts)


def markdown_splits(results: Results) -> str:
    """The counts of each data set (the paper's Table 2) and the digest of its split."""
    splits: dict[str, dict[str, Any]] = {}  # by digest
    models: dict[str, dict[str, None]] = {}
    for result in results.values():
        digest = result["split"]["sha256"]
        splits[digest] = {**result["split"], "dataset": result["cell"]["dataset"]}
        models.setdefault(digest, {})[Cell(**result["cell"]).title] = None
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
            body = []
            for cell in suite.cells_of(dataset, plan, results)[0]:
                if len(plan.grid) > 1 and cell.identifier in results:
                    result = results[cell.identifier]
                    values = [str(value) for value in cell.choice.values()]
                    score = f"{result['valid_score']:.4f}"
                    body.append([*values, score, str(len(result["curve"]))])
            if body:
                names = [keys.split(",")[0] for keys in plan.grid[0]]
                head = [*names, f"valid {suite.run_settings['valid_metric']}", "epochs"]
                parts.append(f"### {plan.title}, {dataset}\n\n" + markdown_table(head, body))
    return "\n\n".join(parts)


def markdown_curves(suite: Suite, results: Results) -> str:
    """Validation score over training, at the first seed, of at most a dozen points a model."""
    body = []
    for (dataset, model), cells in final_results(suite, results).items():
        curve = cells[0]["curve"]
        step = -(-len(curve) // 12)
        points = [
            f"{number}: {score:.4f} ({seconds / 60:.1f} min)"
            for number, (seconds, score) in enumerate(curve, start=1)
            if number % step == 0 or number == len(curve)
        ]
        body.append([dataset, model, ", ".join(points)])
    return markdown_table(["data set", "model", "validation: score (time since the start)"], body)


def markdown_validation(suite: Suite, results: Results) -> str:
    """What each setting that was not tested came to on validation, for each data set."""
    metric = suite.run_settings["valid_metric"].lower()
    found = final_results(suite, results, validation_only=True)
    parts = []
    for dataset in dict.fromkeys(dataset for dataset, _ in found):
        cells = [cell for (of, _), own in found.items() if of == dataset for cell in own]
        body = validation_rows(cells, metric)
        parts.append(f"### {dataset}, {metric}\n\n" + markdown_table(HEAD, body))
    return "\n\n".join(parts)


def markdown_page(suite: Suite, results: Results, out: Path) -> str:
    """The whole page."""
    table_1 = rows_of(suite, results, "test", "table_1")
    table_3 = [
        row
        for row in rows_of(suite, results, "retrieved", "table_3")
        if row.model in ("LRURec", "LlamaRec")
    ]
    n_retrieved = "; ".join(
        f"{dataset}, {model}: " + " / ".join(f"{c['n_retrieved']} of {c['n_rows']}" for c in cells)
        for (dataset, model), cells in final_results(suite, results).items()
        if model in ("LRURec", "LlamaRec")
    )
    machines = sorted({result["machine"] for result in results.values()})
    versions = dict.fromkeys(json.dumps(result["versions"]) for result in results.values())
    head = (
        f"# Suite {suite.name}\n\n"
        f"{len(results)} of {suite.n_cells} cells are finished. Made by `python benchmarks/run.py "
        f"benchmarks/suites/{suite.name}.yaml`; mean ± standard deviation over seeds. Machine: "
        f"{', '.join(machines)}. Versions: {'; '.join(versions)}."
    )
    sections = {
        "Data (the paper's Table 2)": markdown_splits(results),
        "Test results (the paper's Table 1)": markdown_comparison(table_1),
        "Valid retrieval subset (the paper's Table 3)": (
            f"Test users whose target is among the candidates: {n_retrieved}.\n\n"
            + markdown_comparison(table_3)
        ),
        "LlamaRec against its retriever": markdown_significance(suite, results, out),
        "Other LLM-based recommenders (the paper's Table 4)": markdown_reported(
            read_published(), table_1
        ),
        "Settings, on validation": markdown_validation(suite, results),
        "Grids": markdown_grids(suite, results),
        "Learning curves": markdown_curves(suite, results),
        "Cost": markdown_notes(table_1),
    }
    return (
        "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items() if text)])
        + "\n"
    )


def latex(rows: list[Row]) -> str:
    """A booktabs table of ours, the best of each column and data set in bold."""
    metrics = list(rows[0].ours)
    lines = [
        r"\begin{tabular}{ll" + "c" * len(metrics) + "}",
        r"\toprule",
        " & ".join(["Dataset", "Model", *(m.upper() for m in metrics)]) + r" \\",
    ]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        lines.append(r"\midrule")
        for row in own:
            cells = []
            for metric in metrics:
                value = row.text(metric).replace("±", r"$\pm$")
                best = row.mean(metric) == max(other.mean(metric) for other in own)
                cells.append(rf"\textbf{{{value}}}" if best else value)
            name = dataset.replace("_", r"\_")
            lines.append(" & ".join([name, row.model, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def write_tables(suite: Suite, results: Results, out: Path) -> None:
    """Write ``results.md``, ``results.json`` and ``results.tex`` into ``out``."""
    if not final_results(suite, results):
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(markdown_page(suite, results, out), encoding="utf-8")
    rows = {key: rows_of(suite, results, key, "") for key in ("test", "retrieved")}
    content = {
        key: [{"dataset": r.dataset, "model": r.model, "ours": r.ours, **r.notes} for r in of]
        for key, of in rows.items()
    }
    content["significance"] = [
        {"dataset": dataset, "model": model, "tests": significance(cells, out)}
        for (dataset, model), cells in final_results(suite, results).items()
        if cells[0]["cell"]["model"] == "LlamaRec"
    ]
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "results.tex").write_text(latex(rows["test"]), encoding="utf-8")
