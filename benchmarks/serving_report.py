"""The page of the service's benchmark, from what ``serving.py`` has measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

WAYS = {
    "one at a time": ("--max-batch=1",),
    "batched": (),
    "batched, answers kept": ("--cache=10000",),
}
LOADS = {
    "different requests": ("one at a time", "batched"),
    "requests repeat": tuple(WAYS),
}


def as_markdown(name: str, report: Mapping[str, Any]) -> str:
    """Medians over rounds, and the long run."""
    machine = report["machine"]
    parts = [
        f"# {name}",
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; the clients "
        "run on the same machine.",
    ]
    if speed := report.get("speed"):
        parts += [speed_table(speed["rounds"]), f"`{speed['command']}`"]
    if soaked := report.get("soak"):
        first, middle, last = soaked["memory_mb"]
        parts.append(
            f"{soaked['requests']} requests of {soaked['clients']} clients in {soaked['seconds']} "
            f"s: {soaked['lost']} lost, {soaked['wrong']} wrong; scores differ from those of one "
            f"request alone by {soaked['greatest_difference']:.2g} at most. Memory of the service "
            f"after a tenth of the time, at half and at the end: {first}, {middle}, {last} MB."
        )
        parts.append(f"`{soaked['command']}`")
    return "\n\n".join(parts) + "\n"


def speed_table(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Medians over rounds; the ratio is that of each round to one at a time."""
    by_row: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in rounds:
        by_row.setdefault((one["path"], one["load"], one["way"]), []).append(one)
    rows = []
    for (path, load, way), found in by_row.items():
        alone = by_row[path, load, "one at a time"]
        ratio = statistics.median(
            one["rate"] / other["rate"] for one, other in zip(found, alone, strict=True)
        )
        medians = [statistics.median(one[key] for one in found) for key in ("rate", "p50_ms")]
        late = statistics.median(one["p99_ms"] for one in found)
        total = sum(one["requests"] for one in found)
        rows.append((f"POST /{path}", load, way, *medians, late, ratio, total))
    headers = ("", "", "", "requests/s", "p50, ms", "p99, ms", "times", "requests")
    formats = ("", "", "", ".1f", ".0f", ".0f", ".2f", "d")
    table = tabulate(sorted(rows, key=_place), headers, tablefmt="github", floatfmt=formats)
    n_rounds = len(next(iter(by_row.values())))
    return f"{table}\n\nMedians of {n_rounds} rounds; times: requests/s against one at a time."


def _place(row: Sequence[Any]) -> tuple[int, int, int]:
    paths = ("POST /recommend", "POST /rank")
    return paths.index(row[0]), list(LOADS).index(row[1]), list(WAYS).index(row[2])
