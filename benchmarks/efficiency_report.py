"""The table and the plot of the efficiency benchmark, from what ``efficiency.py`` has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAPER = (
    "The paper reports (section 4.4, Figure 3), for Llama-2-7B on a GPU and titles of 20 tokens: "
    "under 1 s by the verbalizer, 56.16 s by generating."
)


def rows_by_length(report: dict[str, Any]) -> list[tuple[int, dict]]:
    """Title lengths, ascending, each with what was measured."""
    return sorted((int(length), row) for length, row in report["lengths"].items())


def table(report: dict[str, Any]) -> str:
    """The medians as a Markdown table."""
    conditions = report["conditions"]
    lines = [
        "| title tokens | prompt tokens | tokens written | verbalizer, s | generating, s | ratio |",
        "|---" * 6 + "|",
    ]
    for length, row in rows_by_length(report):
        lines.append(
            f"| {length} | {row['prompt_tokens']} | {row['new_tokens']} "
            f"| {row['verbalizer_median_s']:.3f} | {row['generate_median_s']:.2f} "
            f"| {row['ratio']:.0f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {conditions['rounds']} prompts, one at a time, both methods in turn: "
            f"{conditions['n_history']} history items, {conditions['n_candidates']} candidates; "
            f"{conditions['llm']} in {conditions['dtype']}, {conditions['device']}, "
            f"{conditions['threads']} threads, torch {conditions['torch']}, transformers "
            f"{conditions['transformers']}.",
            "",
            PAPER,
            "",
            f"`{report['command']}`",
            "",
        ]
    )


def import_pyplot():
    """matplotlib, without a display.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f"The plot needs matplotlib, which cannot be imported ({error}); "
            "`pip install --no-deps -r benchmarks/requirements.txt`."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(report: dict[str, Any], file: Path) -> None:
    """Both medians over the title length, seconds on a logarithmic axis, as SVG."""
    pyplot = import_pyplot()
    rows = rows_by_length(report)
    lengths = [length for length, _ in rows]
    pyplot.rcParams["svg.hashsalt"] = "efficiency"  # equal figures give equal files
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for key, label, colour in (
        ("generate_median_s", "generating the titles", "#b2182b"),
        ("verbalizer_median_s", "verbalizer", "#2166ac"),
    ):
        seconds = [row[key] for _, row in rows]
        axes.plot(lengths, seconds, color=colour, marker="o", markersize=4)
        axes.annotate(
            label,
            (lengths[-1], seconds[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            verticalalignment="center",
            annotation_clip=False,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(pyplot.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xticks(lengths)
    axes.set_xlabel("tokens a title")
    axes.set_ylabel("seconds a prompt")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
