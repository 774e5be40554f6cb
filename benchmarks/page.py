"""The page of a suite, ``README.md`` in the folder of its results; and the test as LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from results import CELLS, Results, read_cells, read_users, retired_cells, write_whole
from significance import markdown_significance
from suite import Suite
from tables import (
    Groups,
    Row,
    markdown_comparison,
    markdown_curves,
    markdown_grids,
    markdown_notes,
    markdown_reported,
    markdown_retrieved,
    markdown_splits,
    markdown_validation,
    retired_groups,
    rows_of,
    suite_groups,
)

TEST = "Test results (the paper's Table 1)"
RETRIEVED = "Valid retrieval subset (the paper's Table 3)"
TESTS = "LlamaRec against its retriever"
VALIDATION = "Settings, on validation"
RETIRED = (
    "Measured with settings that the package no longer has, or that the suite no longer asks for."
)


def write_page(suite: Suite, results: Results, out: Path) -> None:
    """Write ``README.md`` into ``out``; nothing before the first model is finished."""
    if suite_groups(suite, results):
        retired = retired_cells(read_cells(out), results)
        page = markdown_page(suite, results, retired, read_users(out))
        write_whole(out / "README.md", page.encode())


def markdown_page(suite: Suite, results: Results, retired: Results, users: pd.DataFrame) -> str:
    """The whole page.

    Args:
        suite: the suite.
        results: lines of its finished cells, by id.
        retired: lines of retired cells, by id.
        users: from :func:`results.read_users`.
    """
    groups = suite_groups(suite, results)
    metric = suite.run_settings["valid_metric"].lower()
    of_groups = sections(groups, users, metric)
    body = {
        "Data (the paper's Table 2)": markdown_splits({**results, **retired}),
        TEST: of_groups.pop(TEST),
        RETRIEVED: of_groups.pop(RETRIEVED),
        TESTS: of_groups.pop(TESTS),
        "Other LLM-based recommenders (the paper's Table 4)": markdown_reported(groups),
        VALIDATION: of_groups.pop(VALIDATION),
        "Grids": markdown_grids(suite, results),
        **of_groups,
    }
    parts = [page_head(suite, results, retired), joined(body)]
    if retired:
        of_retired = joined(sections(retired_groups(retired), users, metric))
        parts += [
            f"## Retired settings\n\n{RETIRED}",
            re.sub(r"^##", "###", of_retired, flags=re.M),
        ]
    return "\n\n".join(parts) + "\n"


def page_head(suite: Suite, results: Results, retired: Results) -> str:
    """The page's title, and what it was made by and on."""
    lines = [*results.values(), *retired.values()]
    machines = sorted({line["machine"] for line in lines})
    versions = dict.fromkeys(json.dumps(line["versions"]) for line in lines)
    also = f" ({len(retired)} retired cells are below)" if retired else ""
    return (
        f"# Suite {suite.name}\n\n"
        f"{len(results)} of {suite.n_cells} cells are finished{also}. Made by `python "
        f"benchmarks/run.py benchmarks/suites/{suite.name}.yaml`, from `{CELLS}`; mean ± standard "
        f"deviation over seeds. Machine: {', '.join(machines)}. Versions: {'; '.join(versions)}."
    )


def sections(groups: Groups, users: pd.DataFrame, metric: str) -> dict[str, str]:
    """The sections that any cells can have, by title; empty text where they have none."""
    return {
        TEST: markdown_comparison(rows_of(groups, "test", "table_1")),
        RETRIEVED: markdown_retrieved(groups),
        TESTS: markdown_significance(groups, users),
        VALIDATION: markdown_validation(groups, metric),
        "Learning curves": markdown_curves(groups),
        "Cost": markdown_notes(groups),
    }


def joined(texts: Mapping[str, str]) -> str:
    """Sections in order, without those that are empty."""
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in texts.items() if text)


def latex(rows: Sequence[Row]) -> str:
    """A booktabs table of ours, the best of each column and data set in bold."""
    metrics = list(rows[0].ours)
    lines = [
        r"\begin{tabular}{ll" + "c" * len(metrics) + "}",
        r"\toprule",
        " & ".join(["Dataset", "Model", *(m.upper() for m in metrics)]) + r" \\",
    ]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        of_dataset = [row for row in rows if row.dataset == dataset]
        lines.append(r"\midrule")
        for row in of_dataset:
            cells = []
            for metric in metrics:
                value = row.text(metric).replace("±", r"$\pm$")
                best = row.mean(metric) == max(other.mean(metric) for other in of_dataset)
                cells.append(rf"\textbf{{{value}}}" if best else value)
            name = dataset.replace("_", r"\_")
            lines.append(" & ".join([name, row.model, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
