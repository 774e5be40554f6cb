"""Requests a second of the service, in batches and one at a time, and a long run of it.

    python benchmarks/serving.py --checkpoint saved/LlamaRec-….pth --out FOLDER [--soak SECONDS]

A service with each way of working runs on the same machine as the clients, which ask one of them at
a time, in rounds, all ways in turn in each. Writes FOLDER/<name>.json and FOLDER/<name>.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cpu_name
from results import read_report
from serving_load import Outcome, Request, ServiceProcess, ask
from serving_report import LOADS, WAYS, as_markdown
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.recommender import Recommender

LONGEST = 100  # items of a history
K = 10  # items of an answer
REPEATED = 100  # different requests of a round in which they repeat
REPETITIONS = 4000  # how often they are drawn, by Zipf's law


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and write both files."""
    options = parse_arguments(arguments)
    recommender = Recommender.from_checkpoint(options.checkpoint, options.data_path)
    name = options.name or recommender.dataset.dataset_name
    file = options.out / f"{name}.json"
    report = read_report(file, "machine") if file.is_file() else {}
    report["machine"] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    command = (
        f"python benchmarks/serving.py --checkpoint saved/LlamaRec-….pth --out FOLDER "
        f"--name {name} --clients {options.clients} --paths {' '.join(options.paths)}"
    )
    if options.soak:
        command += f" --soak {options.soak:g}"
        report["soak"] = {"command": command} | soak(options, recommender)
    else:
        command += f" --rounds {options.rounds} --seconds {options.seconds:g}"
        report["speed"] = {"command": command, "rounds": measure(options, recommender)}
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    text = as_markdown(name, report)
    file.with_suffix(".md").write_text(text)
    print(text)


def data_options(options: argparse.Namespace) -> list[str]:
    """The service's option for the folder of data sets, where one is given."""
    return [f"--data-path={options.data_path}"] if options.data_path else []


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    parser.add_argument("--out", type=Path, required=True, help="folder of both files")
    parser.add_argument("--name", help="of both files; the data set's if left out")
    parser.add_argument("--clients", type=int, default=16, help="that ask at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="of each round of each way")
    parser.add_argument(
        "--paths", nargs="+", choices=("recommend", "rank"), default=("recommend", "rank")
    )
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="compare all answers for so long instead"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.1, help="of a score in the soak (bfloat16)"
    )
    return parser.parse_args(arguments)


# --- requests ------------------------------------------------------------------------------------


def made_up(
    recommender: Recommender, path: str, count: int, generator: np.random.Generator, k: int = K
) -> list[Request]:
    """Different requests: items of random users as histories, random items as candidates."""
    tokens, model = recommender.tokens, recommender.model
    n_users, n_candidates = len(model.seen.starts) - 1, model.settings.rerank_candidates
    requests: dict[Request, None] = {}  # a set that keeps the order
    while len(requests) < count:
        items = generator.permutation(model.seen.of(int(generator.integers(1, n_users))))
        if not len(items):
            continue
        history = items[: generator.integers(1, LONGEST + 1)]
        body: dict[str, Any] = {"history": tokens[history].tolist()}
        if path == "recommend":
            body["k"] = k
        else:
            others = np.setdiff1d(np.arange(1, model.n_items), history)
            pool = generator.choice(others, n_candidates, replace=False)
            body["candidates"] = tokens[pool].tolist()
        requests[Request(f"/{path}", json.dumps(body).encode())] = None
    return list(requests)


def of_load(
    load: str, recommender: Recommender, path: str, count: int, generator: np.random.Generator
) -> list[Request]:
    """The requests of one round; new ones in each, so that what is kept begins empty."""
    if load == "different requests":
        return made_up(recommender, path, count, generator)
    some = made_up(recommender, path, REPEATED, generator)
    weights = 1 / np.arange(1, len(some) + 1)
    drawn = generator.choice(len(some), REPETITIONS, p=weights / weights.sum())
    return [some[i] for i in drawn]


# --- speed ---------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, recommender: Recommender) -> list[dict[str, Any]]:
    """Every round of every way: requests a second, p50 and p99 in milliseconds."""
    generator = np.random.default_rng(options.seed)
    rounds: list[dict[str, Any]] = []
    most = int(options.seconds * 1000)  # more different requests than can be answered
    plan = [(path, load) for path in options.paths for load in LOADS]
    with ExitStack() as stack:
        services = {
            way: stack.enter_context(
                ServiceProcess(options.checkpoint, *data_options(options), *given)
            )
            for way, given in WAYS.items()
        }
        for number in tqdm(range(options.rounds), unit="round", ncols=100):
            for path, load in plan:
                requests = of_load(load, recommender, path, most, generator)
                ways = LOADS[load] if number % 2 == 0 else LOADS[load][::-1]
                for way in ways:
                    figures = one_round(services[way], requests, options)
                    rounds.append({"path": path, "load": load, "way": way} | figures)
    return rounds


def one_round(
    service: ServiceProcess, requests: Sequence[Request], options: argparse.Namespace
) -> dict[str, float]:
    """Ask one service for some seconds.

    Raises:
        RuntimeError: an answer is no result.
    """
    outcomes: list[Outcome] = []
    seconds = ask(service.address, requests, options.clients, options.seconds, outcomes.append)
    if wrong := [outcome for outcome in outcomes if outcome.status != 200]:
        raise RuntimeError(f"{len(wrong)} requests failed; the first: {wrong[0]}")
    p50, p99 = np.percentile([outcome.seconds for outcome in outcomes], (50, 99)) * 1000
    rate = len(outcomes) / seconds
    return {"requests": len(outcomes), "rate": rate, "p50_ms": float(p50), "p99_ms": float(p99)}


# --- a long run ----------------------------------------------------------------------------------


def soak(options: argparse.Namespace, recommender: Recommender, count: int = 64) -> dict[str, Any]:
    """Compare every answer of a long run with that of the recommender, alone.

    Returns:
        counts of requests, of those lost (no answer, or no result) and of wrong answers; the
        greatest difference of a score; the service's memory in MB after a tenth of the time, at
        half of it and at the end.
    """
    generator = np.random.default_rng(options.seed)
    k = recommender.model.settings.rerank_candidates  # near ties cannot change who is listed
    requests: list[Request] = []
    for path in options.paths:
        requests += made_up(recommender, path, count // len(options.paths), generator, k)
    expected = [answer_of(recommender, request) for request in tqdm(requests, desc="Expected")]
    counts = {"requests": 0, "lost": 0, "wrong": 0, "greatest_difference": 0.0}
    one_by_one = threading.Lock()  # clients are threads

    def note(outcome: Outcome) -> None:
        difference: float | None = 0.0
        if outcome.status == 200:
            items = json.loads(outcome.body)["items"]
            difference = difference_of(items, expected[outcome.request], options.tolerance)
        with one_by_one:
            counts["requests"] += 1
            counts["lost"] += outcome.status != 200
            counts["wrong"] += difference is None
            counts["greatest_difference"] = max(counts["greatest_difference"], difference or 0.0)

    with ServiceProcess(options.checkpoint, *data_options(options)) as service:
        memory = []
        for part in (0.1, 0.4, 0.5):
            ask(service.address, requests, options.clients, part * options.soak, note)
            memory.append(round(service.memory(), 1))
    return counts | {
        "seconds": options.soak,
        "clients": options.clients,
        "tolerance": options.tolerance,
        "memory_mb": memory,
    }


def answer_of(recommender: Recommender, request: Request) -> list[dict[str, Any]]:
    """What the recommender answers to a request by itself."""
    body = json.loads(request.body)
    if request.path == "/rank":
        result = recommender.rank(body["history"], body["candidates"])
    else:
        (result,) = recommender.recommend([body["history"]], body["k"])
    return [asdict(item) for item in result]


def difference_of(
    items: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], tolerance: float
) -> float | None:
    """The greatest difference of a score from that expected; ``None`` for a wrong answer.

    An answer is wrong that has other items, a score that differs by more than the tolerance, or an
    order that the scores expected contradict by more than twice of that.
    """
    known = {item["item"]: item for item in expected}
    if sorted(item["item"] for item in items) != sorted(known):
        return None
    if any(item["retriever_rank"] != known[item["item"]]["retriever_rank"] for item in items):
        return None
    scores = [known[item["item"]]["score"] for item in items]
    if None in scores:  # the order is the retriever's
        return 0.0 if list(known) == [item["item"] for item in items] else None
    difference = max(abs(item["score"] - s) for item, s in zip(items, scores, strict=True))
    falls = np.diff(scores).max(initial=-np.inf)
    return difference if difference <= tolerance and falls <= 2 * tolerance else None


if __name__ == "__main__":
    main()
