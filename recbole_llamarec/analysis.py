"""``python -m recbole_llamarec.analysis``: where a run's scorers help, and what they are biased to.

It reads the ``.users.csv`` that every run writes beside its checkpoint. Its stages and scorers are
those that the table has columns of: ``rank:STAGE`` and ``first:SCORER``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_llamarec.evaluation.metrics import metrics_of_ranks
from recbole_llamarec.evaluation.table import RANK
from recbole_llamarec.evaluation.users_file import read_run_users
from recbole_llamarec.files import written_whole
from recbole_llamarec.report import INSTALL

RETRIEVER_RANK = "retriever_rank"  # a grouping by the ranks of the first stage, whatever its name
MOST, RANK_EDGES = 1000, (1, 2, 4, 6, 11)  # MOST candidates, and places of a cut-off
GROUPINGS = {
    RETRIEVER_RANK: "rank of the target by the retriever",
    "history_length": "items in the history",
    "target_count": "training interactions of the target",
}
FIRST_COLOUR, LAST_COLOUR = "#888888", "#d62728"  # the retriever and the final order
COLOURS = ("#2ca02c", "#1f77b4", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")  # between them


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; with ``--out`` also write them and the plots."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.analysis",
        description="Show where a run's scorers help, and how far places and popularity sway them.",
    )
    parser.add_argument("users", type=Path, help="a run's .users.csv, beside its checkpoint")
    parser.add_argument("--candidates", type=int, default=20, help="rerank_candidates of the run")
    parser.add_argument("--topk", type=int, default=10, help="cut-off of Recall and NDCG")
    parser.add_argument("--out", type=Path, help="file without ending: .md and .html are added")
    options = parser.parse_args(arguments)
    if options.out and find_spec("plotly") is None:
        raise SystemExit(f"--out draws with plotly; `{INSTALL}`.")
    try:
        users = read_users(options.users)
        text = describe(users, options.candidates, options.topk)
        print(text)
        if options.out:
            figure = plot(users, options.candidates, options.topk)
            with written_whole(Path(f"{options.out}.md"), "--out") as part:
                part.write_text(text, encoding="utf-8")
            with written_whole(Path(f"{options.out}.html"), "--out") as part:
                figure.write_html(part, include_plotlyjs=True)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


# --- the table of users -------------------------------------------------------------------------


def read_users(file: Path, needs_scorer: bool = True) -> pd.DataFrame:
    """Read a run's table of users.

    Args:
        file: ``LlamaRec-….users.csv``.
        needs_scorer: whether the run must have had another stage than the retriever.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no such table, or a damaged
            one; names the line.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} is not there; give a run's .users.csv.")
    users = read_run_users(file)
    missing = {column for column in GROUPINGS if column != RETRIEVER_RANK} - set(users)
    if len(stages_of(users)) < 1 + needs_scorer:
        missing.add(f"{RANK}:STAGE of two stages or more" if needs_scorer else f"{RANK}:STAGE")
    if missing:
        raise ValueError(
            f"{file}, line 1: the header lacks {sorted(missing)}: the table is of a run without a "
            "scorer, of an earlier version, or damaged. Evaluate the checkpoint again."
        )
    return users


def stages_of(users: pd.DataFrame) -> list[str]:
    """Names of the stages: the retriever's first, the final order's last."""
    return _names(users, RANK)


def distinct_stages(users: pd.DataFrame) -> list[str]:
    """The stages without those between the first and the last that order as another one does.

    A scorer of weight 0 leaves the stage before it as it was, and the last cumulated stage often
    is the final order.
    """
    first, *others = stages_of(users)
    shown, last = [first], others[-1:]
    for stage in others[:-1]:
        ranks = ranks_of(users, stage)
        if not any(ranks.equals(ranks_of(users, other)) for other in [*shown, *last]):
            shown.append(stage)
    return shown + last


def scorers_of(users: pd.DataFrame) -> list[str]:
    """Names of the scorers whose first choices the table has."""
    return _names(users, "first")


def _names(users: pd.DataFrame, kind: str) -> list[str]:
    prefix = f"{kind}:"
    return [column.removeprefix(prefix) for column in users if column.startswith(prefix)]


def ranks_of(users: pd.DataFrame, stage: str) -> pd.Series:
    """The target's rank in a stage, from 1."""
    return users[f"{RANK}:{stage}"]


def retrieved_users(users: pd.DataFrame, n_candidates: int) -> pd.DataFrame:
    """The rows whose target is among the candidates."""
    return users[ranks_of(users, stages_of(users)[0]) <= n_candidates]


# --- what the tables show -----------------------------------------------------------------------


def describe(users: pd.DataFrame, n_candidates: int, topk: int) -> str:
    """Every table as Markdown.

    Raises:
        ValueError: ``n_candidates`` is not the run's: the scorers have not scored some of the rows
            that it would retrieve, or have chosen a place behind it; or ``topk`` is none.
    """
    for option, value in (("--candidates", n_candidates), ("--topk", topk)):
        if not 1 <= value <= MOST:
            raise ValueError(f"{option} is {value}; it must be from 1 to {MOST}.")
    retrieved, scorers = retrieved_users(users, n_candidates), scorers_of(users)
    if any(retrieved[f"first:{scorer}"].isna().any() for scorer in scorers):
        raise ValueError(
            f"--candidates is {n_candidates}, but the run has ranked fewer; give its "
            "rerank_candidates."
        )
    if any((retrieved[f"first:{scorer}"] >= n_candidates).any() for scorer in scorers):
        raise ValueError(
            f"--candidates is {n_candidates}, but the run has ranked more; give its "
            "rerank_candidates."
        )
    lines = [
        f"{len(users)} rows, {len(retrieved)} of them with the target among the {n_candidates} "
        f"candidates. Below are those {len(retrieved)}; NDCG and Recall at {topk}."
    ]
    for column, title in GROUPINGS.items():
        table = by_group(retrieved, column, topk)
        lines += ["", f"## By {title}", "", _markdown(table)]
    for scorer in scorers:
        places = by_place(retrieved, scorer, n_candidates)
        lines += ["", f"## By place among the candidates: {scorer}", "", _markdown(places)]
        lines += ["", popularity_line(retrieved, scorer)]
    return "\n".join(lines) + "\n"


def by_group(users: pd.DataFrame, column: str, topk: int) -> pd.DataFrame:
    """Each stage's metrics in groups of rows.

    Args:
        users: rows to group.
        column: one of :data:`GROUPINGS`; retriever ranks in fixed groups, all else in quarters.
        topk: cut-off.

    Returns:
        one line a group: ``rows`` and, for each of :func:`distinct_stages`, NDCG and Recall.
    """
    stages = distinct_stages(users)
    if column == RETRIEVER_RANK:
        values = ranks_of(users, stages[0])
        edges = sorted({*map(float, RANK_EDGES), float(values.max()) + 1 if len(values) else 21.0})
    else:
        values = users[column]
        quarters = np.quantile(values, [0, 0.25, 0.5, 0.75]) if len(values) else np.zeros(1)
        end = float(values.max()) + 1 if len(values) else 1.0
        edges = sorted({*np.floor(quarters).tolist(), end})
    groups = pd.cut(values, edges, right=False)
    config = {"metrics": ["NDCG", "Recall"], "topk": [topk], "metric_decimal_place": 4}
    lines = []
    for group, rows in users.groupby(groups, observed=True):
        low, high = int(group.left), int(group.right) - 1
        line: dict[str, object] = {column: str(low) if low == high else f"{low}-{high}"}
        line["rows"] = len(rows)
        for stage in stages:
            means = metrics_of_ranks(ranks_of(rows, stage).to_numpy(), config).mean()
            line |= {f"{stage}: {str(name).split('@')[0]}": mean for name, mean in means.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def by_place(users: pd.DataFrame, scorer: str, n_candidates: int) -> pd.DataFrame:
    """How often a scorer's first choice was at each place, and how often the target was.

    Places are the retriever's ranks, which a prompt shows the candidates in. A scorer without
    bias chooses each place about as often as the target stands there.

    Args:
        users: rows whose target is among the candidates.
        scorer: its name.
        n_candidates: K.
    """
    targets = ranks_of(users, stages_of(users)[0]) - 1
    total = max(1, len(users))
    shares = [
        np.bincount(columns.astype(int), minlength=n_candidates)[:n_candidates] / total
        for columns in (targets, users[f"first:{scorer}"])
    ]
    return pd.DataFrame(
        {
            "place": [str(place) for place in range(1, n_candidates + 1)],
            "target stands there": shares[0],
            f"first choice of {scorer}": shares[1],
        }
    )


def popularity_line(users: pd.DataFrame, scorer: str) -> str:
    """Whether a scorer's first choices are more popular than the targets."""
    return (
        f"Popularity: the first choice of {scorer} has "
        f"{users[f'first_count:{scorer}'].median():.0f} training interactions in the median, the "
        f"target {users['target_count'].median():.0f}."
    )


# --- plots --------------------------------------------------------------------------------------


def plot(users: pd.DataFrame, n_candidates: int, topk: int):
    """The tables as one figure of plotly."""
    from plotly.subplots import make_subplots

    retrieved, scorers = retrieved_users(users, n_candidates), scorers_of(users)
    titles = [f"by {title}" for title in GROUPINGS.values()]
    titles += [f"by place: {scorer}" for scorer in scorers]
    n_lines = (len(titles) + 1) // 2
    figure = make_subplots(rows=n_lines, cols=2, subplot_titles=titles)
    for index, column in enumerate(GROUPINGS):
        for bars in group_bars(by_group(retrieved, column, topk), column, topk):
            bars.showlegend = not index
            figure.add_trace(bars, row=1 + index // 2, col=1 + index % 2)
    for index, scorer in enumerate(scorers, start=len(GROUPINGS)):
        for line in place_lines(by_place(retrieved, scorer, n_candidates)):
            figure.add_trace(line, row=1 + index // 2, col=1 + index % 2)
    figure.update_xaxes(type="category")
    figure.update_layout(height=400 * n_lines, legend={"orientation": "h"}, template="plotly_white")
    return figure


def colours_of(stages: Sequence[str]) -> dict[str, str]:
    """A colour of each stage: the first one's and the last one's are always the same."""
    colours = dict(zip(stages, chain([FIRST_COLOUR], cycle(COLOURS)), strict=False))
    return colours | ({stages[-1]: LAST_COLOUR} if len(stages) > 1 else {})


def group_bars(table: pd.DataFrame, column: str, topk: int) -> list:
    """NDCG of each stage as bars of plotly, from what :func:`by_group` gives for ``column``."""
    import plotly.graph_objects as go

    suffix = ": ndcg"
    stages = [name.removesuffix(suffix) for name in table.columns if name.endswith(suffix)]
    return [
        go.Bar(
            x=table[column],
            y=table[f"{stage}{suffix}"],
            name=f"{stage}, NDCG@{topk}",
            marker_color=colour,
        )
        for stage, colour in colours_of(stages).items()
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
