"""The tables of speed.py."""

from __future__ import annotations

import statistics
from typing import Any

REFERENCE = "reference"
EMBEDDED = "embedded"  # the package's own language model


def table(dataset: str, report: dict[str, Any]) -> str:
    """All measured parts as Markdown."""
    machine, conditions = report["machine"], report.get("conditions", {})
    command = f"python benchmarks/speed.py {dataset}"
    if conditions.get("llm", EMBEDDED) != EMBEDDED:
        command += f" --llm {conditions['llm']}"
    if conditions.get("quick"):
        command += " --quick"
    lines = [
        f"# Speed on {dataset}",
        "",
        f"Made by `{command}` on {machine['cpu']}, {machine['threads']} threads, torch "
        f"{machine['torch']}, transformers {machine['transformers']}. Medians; all methods in turn "
        "in each round.",
    ]
    for part, write in (
        ("ranking", _ranking),
        ("tuning", _tuning),
        ("start", _start),
        ("retrieval", _retrieval),
        ("growth", _growth),
        ("profile", _profile),
    ):
        if part in report:
            lines += ["", *write(report[part])]
    if "evaluation" in report:
        lines += ["", *_evaluation(report["evaluation"], report.get("ranking"))]
    return "\n".join(lines) + "\n"


def _ranking(part: dict[str, Any]) -> list[str]:
    rates = {dtype: statistics.median(found) for dtype, found in part["matrix_rates"].items()}
    lines = [
        "## Ranking",
        "",
        f"{part['tokens']:.0f} tokens and {part['flops'] / 1e9:.0f} GFLOP a prompt, "
        f"{part['prompts']} prompts a round. Large matrix products in the same run: "
        f"{_listed(rates)}.",
        "",
        "| | s a prompt | prompts/s | tokens/s | times the reference's speed | "
        "share of its precision's matrix rate | greatest difference of scores |",
        "|---|---|---|---|---|---|---|",
    ]
    base = part["seconds"][REFERENCE]
    for name, seconds in part["seconds"].items():
        median = statistics.median(seconds)
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        error = part["errors"].get(name)
        lines.append(
            f"| {name} | {median:.3f} | {1 / median:.2f} | {part['tokens'] / median:.0f} | "
            f"{ratio:.2f} | {part['flops'] / median / rates[dtype_of(name)]:.0%} | "
            f"{'–' if error is None else f'{error:.1e}'} |"
        )
    return lines


def _tuning(part: dict[str, list[dict]]) -> list[str]:
    rates: dict[str, list[float]] = {}
    for name, rounds in part.items():
        rates.setdefault(dtype_of(name), []).extend(run["matrix_rate"] for run in rounds)
    medians = {dtype: statistics.median(found) for dtype, found in rates.items()}
    lines = [
        "## Tuning",
        "",
        "LoRA (r 16) on all linear layers. Large matrix products in the same processes: "
        f"{_listed(medians)}.",
        "",
        "| | tokens a sample | s a sample | tokens/s | times the reference's tokens/s | "
        "share of its precision's matrix rate | outside forward and backward | peak memory, MB | "
        "times the reference's memory | loss of round 1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = part[REFERENCE]
    for name, rounds in part.items():
        pairs = list(zip(base, rounds, strict=True))
        speed = statistics.median(_tokens_a_second(r) / _tokens_a_second(b) for b, r in pairs)
        memory = statistics.median(r["peak_mb"] / b["peak_mb"] for b, r in pairs)
        share = (
            statistics.median(r["flops"] / r["seconds"] for r in rounds) / medians[dtype_of(name)]
        )
        lines.append(
            f"| {name} | {_median(rounds, 'tokens'):.0f} | {_median(rounds, 'seconds'):.2f} | "
            f"{statistics.median(map(_tokens_a_second, rounds)):.0f} | {speed:.2f} | {share:.0%} | "
            f"{_median(rounds, 'elsewhere'):.1%} | {_median(rounds, 'peak_mb'):.0f} | "
            f"{memory:.2f} | {rounds[0]['loss']:.5f} |"
        )
    return lines


def _listed(rates: dict[str, float]) -> str:
    """Rates of matrix products by precision, for people."""
    return ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())


def _tokens_a_second(run: dict[str, float]) -> float:
    return run["tokens"] / run["seconds"]


def dtype_of(name: str) -> str:
    """The precision that a method's products are computed in, by the method's name."""
    return "bfloat16" if "bfloat16" in name or name.endswith("8 bits") else "float32"


def _evaluation(part: dict[str, list[dict]], ranking: dict[str, Any] | None) -> list[str]:
    lines = [
        "## Evaluation of a test set as users run it",
        "",
        "Rows whose target is not among the candidates are not ranked: no metric can change. The "
        "reference's time is its median a prompt (above) times all rows.",
        "",
        "| | rows | ranked | s | times the reference's speed | outside the language model | "
        "NDCG@10 | retriever's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rounds in part.items():
        run = rounds[0]
        speed = "–"
        if ranking:
            whole = statistics.median(ranking["seconds"][REFERENCE]) * run["rows"]
            speed = f"{whole / run['seconds']:.1f}"
        outside = 1 - run["in_model"] / run["seconds"]
        lines.append(
            f"| {name} | {run['rows']} | {run['ranked']} | {run['seconds']:.1f} | {speed} | "
            f"{outside:.1%} | {run['metrics']['ndcg@10']} | {run['retriever']['ndcg@10']} |"
        )
    return lines


def _start(part: dict[str, list[dict]]) -> list[str]:
    seconds = _median(part["second run"], "seconds")
    return ["## Start", "", f"From Python's start to the first scored prompt: {seconds:.1f} s."]


def _retrieval(part: dict[str, dict]) -> list[str]:
    lines = [
        "## Retrieval of 20 candidates",
        "",
        "| users | items | s | ms a user | peak memory of the process, MB |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {run['users']} | {run['items']} | {run['seconds']:.1f} | "
        f"{1000 * run['seconds'] / run['users']:.2f} | {run['peak_mb']:.0f} |"
        for run in part.values()
    ]


def _growth(part: dict[str, dict[str, float]]) -> list[str]:
    lines = ["## Growth", "", "| | s |", "|---|---|"]
    for name, measured in part.items():
        lines += [f"| {name}: {value} | {seconds:.2f} |" for value, seconds in measured.items()]
    return lines


def _profile(part: dict[str, dict[str, float]]) -> list[str]:
    kinds = list(part)
    lines = [
        "## Where the time goes",
        "",
        f"| | {' | '.join(kinds)} |",
        "|---" * (1 + len(kinds)) + "|",
    ]
    for name in part[kinds[0]]:
        shares = " | ".join(f"{part[kind][name]:.0%}" for kind in kinds)
        lines.append(f"| {name} | {shares} |")
    return lines


def _median(rounds: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in rounds)
