"""``python -m recbole_llamarec.analysis``: where a run's ranker helps, and what it is biased to.

It reads the ``.users.csv`` that every run writes beside its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_llamarec.evaluation import rank_metrics

STAGES = {
    "retriever": "retriever",
    "evidence": "retriever and evidence",
    "ranker": "ranker alone",
    "llamarec": "LlamaRec",
}
RANK_EDGES = (1, 2, 4, 6, 11)
COLOURS = {
    "retriever": "#888888",
    "retriever and evidence": "#2ca02c",
    "ranker alone": "#1f77b4",
    "LlamaRec": "#d62728",
}
GROUPINGS = {
    "retriever_rank": "rank of the target by the retriever",
    "history_length": "items in the history",
    "target_count": "training interactions of the target",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; with ``--out`` also write them and the plots."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.analysis",
        description="Show where a run's ranker helps, and how far labels and popularity sway it.",
    )
    parser.add_argument("users", type=Path, help="a run's .users.csv, beside its checkpoint")
    parser.add_argument("--candidates", type=int, default=20, help="rerank_candidates of the run")
    parser.add_argument("--topk", type=int, default=10, help="cut-off of Recall and NDCG")
    parser.add_argument("--out", type=Path, help="file without ending: .md and .html are added")
    options = parser.parse_args(arguments)
    users = read_users(options.users)
    text = describe(users, options.candidates, options.topk)
    print(text)
    if options.out:
        Path(f"{options.out}.md").write_text(text, encoding="utf-8")
        figure = plot(users, options.candidates, options.topk)
        figure.write_html(f"{options.out}.html", include_plotlyjs=True)


def read_users(file: Path, with_ranker: bool = True) -> pd.DataFrame:
    """Read a run's table of users.

    Args:
        file: ``LlamaRec-….users.csv``.
        with_ranker: whether the run must have had a ranker.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no such table.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} is not there; give a run's .users.csv.")
    users = pd.read_csv(file)
    needed = {"retriever_rank", *GROUPINGS} | ({"llamarec_rank"} if with_ranker else set())
    missing = needed - set(users)
    if missing:
        raise ValueError(
            f"{str(file)!r} lacks the columns {sorted(missing)}: it is of a run without a ranker, "
            "or of an earlier version. Evaluate the checkpoint again."
        )
    return users


def describe(users: pd.DataFrame, n_candidates: int, topk: int) -> str:
    """Every table as Markdown.

    Raises:
        ValueError: the ranker has not seen some of the rows that ``n_candidates`` would retrieve.
    """
    retrieved = users[users["retriever_rank"] <= n_candidates]
    if "shown_first" in users and retrieved["shown_first"].isna().any():
        raise ValueError(
            f"--candidates is {n_candidates}, but the run has ranked fewer; give its "
            "rerank_candidates."
        )
    lines = [
        f"{len(users)} rows, {len(retrieved)} of them with the target among the {n_candidates} "
        f"candidates. Below are those {len(retrieved)}; NDCG and Recall at {topk}."
    ]
    for column, title in GROUPINGS.items():
        table = by_group(retrieved, column, topk)
        lines += ["", f"## By {title}", "", _markdown(table)]
    if "shown_first" in users:
        lines += ["", "## By place in the prompt", "", _markdown(by_place(retrieved, n_candidates))]
        lines += ["", popularity_line(retrieved)]
    return "\n".join(lines) + "\n"


def by_group(users: pd.DataFrame, column: str, topk: int) -> pd.DataFrame:
    """Each stage's metrics in groups of rows.

    Args:
        users: rows to group.
        column: what to group by; retriever ranks in fixed groups, all else in quarters.
        topk: cut-off.

    Returns:
        one line a group: ``rows`` and, for each stage, NDCG and Recall.
    """
    values = users[column]
    if column == "retriever_rank":
        edges = sorted({*map(float, RANK_EDGES), float(values.max()) + 1 if len(values) else 21.0})
    else:
        quarters = np.quantile(values, [0, 0.25, 0.5, 0.75]) if len(values) else np.zeros(1)
        end = float(values.max()) + 1 if len(values) else 1.0
        edges = sorted({*np.floor(quarters).tolist(), end})
    groups = pd.cut(values, edges, right=False)
    lines = []
    for group, rows in users.groupby(groups, observed=True):
        low, high = int(group.left), int(group.right) - 1
        line: dict[str, object] = {column: str(low) if low == high else f"{low}-{high}"}
        line["rows"] = len(rows)
        for stage, name in STAGES.items():
            if f"{stage}_rank" in rows:
                ranks = rows[f"{stage}_rank"].to_numpy()
                for metric, gain in rank_metrics(ranks, ["NDCG", "Recall"], [topk]).mean().items():
                    line[f"{name}: {str(metric).split('@')[0]}"] = gain
        lines.append(line)
    return pd.DataFrame(lines)


def by_place(users: pd.DataFrame, n_candidates: int) -> pd.DataFrame:
    """How often the ranker's first choice was shown at each place, and how often the target was.

    A ranker without label bias chooses each place about as often as the target stands there.
    """
    chosen = np.bincount(users["shown_first"].astype(int), minlength=n_candidates)[:n_candidates]
    shown = np.bincount(users["target_shown"].astype(int), minlength=n_candidates)[:n_candidates]
    total = max(1, len(users))
    return pd.DataFrame(
        {
            "place": [str(place) for place in range(1, n_candidates + 1)],
            "target stands there": shown / total,
            "the ranker's first choice": chosen / total,
        }
    )


def popularity_line(users: pd.DataFrame) -> str:
    """Whether the ranker's first choices are more popular than the targets."""
    return (
        "Popularity: the ranker's first choice has "
        f"{users['first_count'].median():.0f} training interactions in the median, the target "
        f"{users['target_count'].median():.0f}."
    )


def plot(users: pd.DataFrame, n_candidates: int, topk: int):
    """The tables as one figure of plotly."""
    from plotly.subplots import make_subplots

    retrieved = users[users["retriever_rank"] <= n_candidates]
    titles = [f"by {title}" for title in GROUPINGS.values()] + ["by place in the prompt"]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles)
    for index, column in enumerate(GROUPINGS):
        for bars in group_bars(by_group(retrieved, column, topk), column, topk):
            bars.showlegend = not index
            figure.add_trace(bars, row=1 + index // 2, col=1 + index % 2)
    if "shown_first" in users:
        for line in place_lines(by_place(retrieved, n_candidates)):
            figure.add_trace(line, row=2, col=2)
    figure.update_xaxes(type="category")
    figure.update_layout(height=800, legend={"orientation": "h"}, template="plotly_white")
    return figure


def group_bars(table: pd.DataFrame, column: str, topk: int) -> list:
    """NDCG of each stage as bars of plotly, from what :func:`by_group` gives for ``column``."""
    import plotly.graph_objects as go

    return [
        go.Bar(
            x=table[column],
            y=table[f"{name}: ndcg"],
            name=f"{name}, NDCG@{topk}",
            marker_color=colour,
        )
        for name, colour in COLOURS.items()
        if f"{name}: ndcg" in table
    ]


def place_lines(places: pd.DataFrame) -> list:
    """What :func:`by_place` gives, as lines of plotly."""
    import plotly.graph_objects as go

    return [
        go.Scatter(x=places["place"], y=places[name], name=name, mode="lines+markers")
        for name in places.columns[1:]
    ]


def _markdown(table: pd.DataFrame) -> str:
    return tabulate(table, headers="keys", tablefmt="github", showindex=False, floatfmt=".4f")


if __name__ == "__main__":
    main()
