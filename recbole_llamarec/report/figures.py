"""The figures of a report, as parts of an HTML page that has plotly's script already."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_llamarec.analysis import FIRST_COLOUR, LAST_COLOUR, group_bars, place_lines
from recbole_llamarec.tuning.curve import TrainingCurve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def as_html(figure: Figure, name: str) -> str:
    """A figure as a ``div`` and its script; what plotly writes into it is safe within a script.

    Args:
        figure: to show.
        name: the ``div``'s id, so that the same figure gives the same text.
    """
    figure.update_layout(
        template="plotly_white",
        height=340,
        margin={"l": 55, "r": 15, "t": 15, "b": 45},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12},
        dragmode=False,  # a finger on a figure scrolls the page
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"responsive": True, "displayModeBar": False},
    )


def curve_figure(curve: TrainingCurve, step: str, loss: str, metric: str) -> Figure:
    """Training loss on the left axis, validation metric on the right one.

    Args:
        curve: of one stage.
        step, loss, metric: titles of the axes.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for values, name, colour, mode in (
        (curve.losses, loss, FIRST_COLOUR, "lines"),
        (curve.scores, f"{metric} on validation", LAST_COLOUR, "lines+markers"),
    ):
        line = go.Scatter(
            x=list(values), y=list(values.values()), name=name, mode=mode, line={"color": colour}
        )
        figure.add_trace(line, secondary_y=values is curve.scores)
    figure.update_xaxes(title=step)
    figure.update_yaxes(title=loss, secondary_y=False)
    figure.update_yaxes(
        title=metric, tickmode="auto", rangemode="tozero", showgrid=False, secondary_y=True
    )
    return figure


def moved_figure(before: pd.Series, after: pd.Series, n_candidates: int) -> Figure:
    """How many targets moved from each of the retriever's ranks to each final rank.

    Args:
        before, after: the target's rank by the retriever and in the end, from 1 to K, of each row.
        n_candidates: K.
    """
    import plotly.graph_objects as go

    counts = np.zeros((n_candidates, n_candidates), dtype=int)  # [retriever's rank, final rank]
    np.add.at(counts, (before.to_numpy() - 1, after.to_numpy() - 1), 1)
    ranks = list(range(1, n_candidates + 1))
    figure = go.Figure(
        go.Heatmap(
            x=ranks,
            y=ranks,
            z=counts.tolist(),
            colorscale=[[0, "#ffffff"], [1, "#1f5fa8"]],
            colorbar={"title": {"text": "users"}, "thickness": 12},
            hovertemplate="rank %{y} by the retriever, %{x} in the end: %{z}<extra></extra>",
        )
    )
    figure.update_xaxes(title="final rank of the target")
    figure.update_yaxes(title="rank by the retriever", autorange="reversed")
    return figure


def group_figure(table: pd.DataFrame, column: str, title: str, topk: int) -> Figure:
    """NDCG of each stage by groups of rows.

    Args:
        table: of ``analysis.by_group``.
        column: what it is grouped by.
        title: of that.
        topk: cut-off.
    """
    import plotly.graph_objects as go

    figure = go.Figure(group_bars(table, column, topk))
    figure.update_xaxes(type="category", title=title)
    figure.update_yaxes(title=f"NDCG@{topk}")
    return figure


def place_figure(places: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """How often a scorer's first choice and the target stood at each place.

    Args:
        places: of ``analysis.by_place``.
        labels: what the places are called.
    """
    import plotly.graph_objects as go

    figure = go.Figure(place_lines(places))
    shown = [html.escape(label) for label in labels]  # plotly reads some tags in a text
    figure.update_xaxes(
        title="place among the candidates", tickvals=places["place"], ticktext=shown
    )
    figure.update_yaxes(title="share of rows", rangemode="tozero", tickformat=".0%")
    return figure
