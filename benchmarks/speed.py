"""Speed of ranking, tuning, evaluation and retrieval against what one would write without us.

    python benchmarks/speed.py ml-100k --out FOLDER [--data DIR] [--gguf FILE] [--quick]

Each part is measured in rounds, all methods in turn in each round, and medians count. Parts that
FOLDER/<data set>.json already holds are not measured again; FOLDER/<data set>.md is the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import cpu_name, without_folder
from results import read_report
from speed_methods import (
    EMBEDDED,
    Bench,
    flops_of_prompts,
    llama_cpp_ranking,
    matrix_rate,
    ours,
    ranking_methods,
)
from speed_table import dtype_of, table
from speed_tuning import Tuning
from speed_worker import in_a_process
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

PARTS = ("ranking", "tuning", "evaluation", "start", "retrieval", "growth", "profile")
TUNED = "ours bfloat16"
TUNING = (
    "reference",
    "reference bfloat16",
    "ours",
    TUNED,
    "ours bfloat16, titles",
)
OPERATIONS = {
    "linear layers": {"aten::mm", "aten::addmm", "aten::addmm_", "aten::linear"},
    "attention": {
        *("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    },
}
EVALUATION = ("float32", "bfloat16", "8 bits")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are missing and write the table."""
    options = parse_arguments(arguments)
    file = options.out / f"{options.dataset}.json"
    report = started_report(file, options)
    report["machine"] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    measuring: dict[str, Callable[[argparse.Namespace, dict], Any]] = {
        "ranking": measure_ranking,
        "tuning": lambda o, _: measure_in_processes("tuning", TUNING, o),
        "evaluation": lambda o, _: measure_in_processes("evaluation", EVALUATION, o, rounds=1),
        "start": lambda o, _: measure_in_processes("start", ("second run",), o),
        "retrieval": measure_retrieval,
        "growth": measure_growth,
        "profile": measure_profile,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        if part in report and part not in options.again:
            continue
        print(f"{options.dataset}: {part}", flush=True)
        report[part] = measuring[part](options, report)
        file.write_text(json.dumps(report, indent=1) + "\n")
    if "growth" in report:
        plot_growth(report["growth"], options.out / f"{options.dataset}.svg")
    text = table(options.dataset, report)
    file.with_suffix(".md").write_text(text)
    print(text)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", help="a data set with a property file, such as ml-100k")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", help="RecBole's data_path; its own data set if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16, help="of one round")
    parser.add_argument("--rows", type=int, default=1000, help="test rows of the evaluation")
    parser.add_argument("--llm", default=EMBEDDED, help="as llm_name_or_path")
    parser.add_argument("--gguf", help="the same model for llama.cpp (needs xllamacpp)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--again", nargs="*", choices=PARTS, default=(), help="measure once more")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.prompts, options.rows = 1, 2, 8
    return options


def started_report(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What was measured before, or nothing yet.

    Raises:
        ValueError: the file holds another language model's figures, or those of a quick run.
    """
    conditions = {"llm": without_folder(options.llm), "quick": options.quick}
    if not file.is_file():
        return {"conditions": conditions}
    report = read_report(file, "conditions")
    before = report.setdefault("conditions", {"llm": EMBEDDED, "quick": False})
    if before != conditions:
        raise ValueError(
            f"{file} was measured with {before}, and now it is {conditions}: name another --out."
        )
    return report


def bench_of(options: argparse.Namespace) -> Bench:
    """The data set and the language models of a run, which are read once."""
    return _bench(options.dataset, options.data, options.llm)


@cache
def _bench(dataset: str, data: str | None, llm: str) -> Bench:
    return Bench.of(dataset, data, llm)


def task_of(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What a process of its own is told."""
    names = ("dataset", "data", "llm", "prompts", "rows", "quick")
    return {**{name: getattr(options, name) for name in names}, **more}


def measure_ranking(options: argparse.Namespace, _report: dict) -> dict[str, Any]:
    """Seconds a prompt of each method, in rounds, and the greatest difference of scores."""
    bench = bench_of(options)
    methods = ranking_methods(bench)
    if options.gguf:
        methods["llama.cpp, 4 bits"] = llama_cpp_ranking(bench, options.gguf)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    errors: dict[str, float] = {}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    tokens, flops = [], []
    n_prompts = options.prompts
    for name, method in methods.items():  # warms up: products of half precision are compiled
        n_first = 4 * n_prompts if dtype_of(name) == "bfloat16" else 2
        method(*bench.sample(n_first, seed=-1))
    for turn in tqdm(range(options.rounds), unit="round", ncols=100):
        histories, candidates = bench.sample(n_prompts, seed=turn)
        reference = None
        for name, method in methods.items():
            start = time.perf_counter()
            scores = method(histories, candidates)
            seconds[name].append((time.perf_counter() - start) / n_prompts)
            if reference is None:
                reference = scores
            if scores is not None:
                error = (scores - reference).abs().max().item()
                errors[name] = max(errors.get(name, 0.0), error)
        for dtype, measured in rates.items():
            size = 256 if options.quick else 2048
            measured.append(matrix_rate(getattr(torch, dtype), size))
        lengths = bench.lengths(histories, candidates)
        tokens.append(sum(lengths) / n_prompts)
        flops.append(flops_of_prompts(bench.model("float32"), lengths) / n_prompts)
    return {
        "seconds": seconds,
        "errors": errors,
        "matrix_rates": rates,
        "tokens": statistics.mean(tokens),
        "flops": statistics.mean(flops),
        "prompts": n_prompts,
    }


def measure_in_processes(
    part: str, methods: tuple[str, ...], options: argparse.Namespace, rounds: int | None = None
) -> dict[str, list[dict]]:
    """What a process of its own reports of each method in each round, with its peak memory."""
    runs: dict[str, list[dict]] = {name: [] for name in methods}
    for turn in tqdm(range(rounds or options.rounds), unit="round", ncols=100):
        for name in methods:
            runs[name].append(in_a_process(part, task_of(options, method=name, seed=turn)))
    return runs


def measure_retrieval(options: argparse.Namespace, _report: dict) -> dict[str, dict]:
    """Candidates of all users, and of few and more users over a million items."""
    runs = {"all users": in_a_process("retrieval", task_of(options))}
    n_items = 10_000 if options.quick else 1_000_000
    for n_users in (256, 1024):
        task = {"users": n_users, "items": n_items}
        runs[f"{n_users} users"] = in_a_process("large_catalogue", task)
    return runs


def measure_growth(options: argparse.Namespace, _report: dict) -> dict[str, dict[str, float]]:
    """Seconds over the number of users, history length, candidates and catalogue size."""
    bench = bench_of(options)
    rank = ours(bench.ranker("bfloat16"))

    def seconds(n_users: int, n_history: int, n_candidates: int) -> float:
        times = []
        for turn in range(options.rounds):
            histories, candidates = bench.sample(n_users, turn, n_history, n_candidates)
            start = time.perf_counter()
            rank(histories, candidates)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    seconds(2, 20, 20)  # warms up
    sizes = slice(2) if options.quick else slice(None)
    catalogues = {
        str(n_items): in_a_process("large_catalogue", {"users": 256, "items": n_items})["seconds"]
        for n_items in (10_000, 100_000, 1_000_000)[sizes]
    }
    return {
        "users": {str(n): seconds(n, 20, 20) for n in (1, 4, 8, 16, 32)[sizes]},
        "history": {str(n): seconds(8, n, 20) for n in (0, 5, 10, 20, 40)[sizes]},
        "candidates": {str(n): seconds(8, 20, n) for n in (2, 5, 10, 20, 40)[sizes]},
        "catalogue": catalogues,
    }


def measure_profile(options: argparse.Namespace, _report: dict) -> dict[str, dict[str, float]]:
    """What share of the processor time each kind of operation takes, in ranking and in tuning."""
    bench = bench_of(options)
    rows = bench.sample(options.prompts, seed=0)
    tuned = Tuning(replace(bench, rankers={}), TUNED)
    work: dict[str, Callable[[], Any]] = {
        f"ranking, {kind}": partial(ours(bench.ranker(kind)), *rows)
        for kind in ("float32", "bfloat16")
    }
    work[f"tuning, {tuned.dtype}"] = partial(tuned.step, *rows)
    shares = {}
    for name, do in work.items():
        do()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            do()
        seconds = dict.fromkeys((*OPERATIONS, "other"), 0.0)
        for event in profiler.key_averages():
            kind_of = next((k for k, names in OPERATIONS.items() if event.key in names), "other")
            seconds[kind_of] += event.self_cpu_time_total
        total = sum(seconds.values())
        shares[name] = {kind: part / total for kind, part in seconds.items()}
    return shares


def plot_growth(growth: dict[str, dict[str, float]], file: Path) -> None:
    """One plot for each thing that grows, with a straight line to compare."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(growth), figsize=(3.2 * len(growth), 3))
    for axis, (name, measured) in zip(axes, growth.items(), strict=True):
        sizes = [int(size) for size in measured]
        seconds = list(measured.values())
        axis.plot(sizes, seconds, marker="o")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axis.plot(sizes, linear, linestyle=":", color="grey", label="proportional")
        axis.set(xlabel=name, ylabel="seconds", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
