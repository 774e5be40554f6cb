"""One run on two hosts against the same run in one process; and one host of two that is killed.

    python benchmarks/hosts.py --dataset ml-100k

A host is what is typed on one machine: ``--nproc=1 --world_size=2 --group_offset=K``; here both are
on this one. The language model is a random two-layer Llama, so that the figures say nothing of
quality; dropout is left out, since each process draws its own. First table: test metrics, which are
to be equal, and the rows and users of the table of users, which are to be as many. Second: one of
the two hosts is killed by SIGKILL in each phase; when the other one has ended, the run goes on in
one process, and from the same files on two hosts. The exit code is 1 with findings.
"""

from __future__ import annotations

import argparse
import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

import small_run  # noqa: E402
from helpers import checkpoint_of, free_port  # noqa: E402
from tiny_llama import write_tiny_llama  # noqa: E402

SETTINGS = {
    "rerank_fusion": "auto",
    "rerank_candidates": 20,
    "train_max_samples": 64,
    "train_eval_steps": 2,
    "train_eval_rows": 20,
    "save_every_minutes": 0.001,
    "lora_dropout": 0.0,
    "retriever_config": {
        **{"epochs": 3, "train_batch_size": 256},
        **{"dropout_prob": 0.0, "embedding_dropout_prob": 0.0},
    },
}
PHASES = {  # what the first host's log says when a phase has begun
    "retriever": "epoch 0 evaluating",
    "tuning": "ranker step 2",
    "test": "Loading model structure",
}
ROUNDING = 1e-4
MOST_SECONDS = 60  # until the other host has ended
RESULT = re.compile(r"test result: (.*)")
METRIC = re.compile(r"'(\w+@\d+)', (?:np\.float64\()?([\d.]+)")
LOST = re.compile(r"ProcessLostError: (.*?which was killed or has failed)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=("tiny", "ml-100k"), default="tiny")
    parser.add_argument("--phases", nargs="+", choices=tuple(PHASES), default=list(PHASES))
    parser.add_argument("--killed", type=int, choices=(0, 1), default=1, help="rank of that host")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        llama = write_tiny_llama(root / "llama")
        faults = compared(root, llama, options.dataset)
        faults += [
            fault
            for phase in options.phases
            for fault in killed(root / phase, llama, options.dataset, phase, options.killed)
        ]
    print("\n".join(faults) or "no findings")
    raise SystemExit(bool(faults))


def compared(root: Path, llama: Path, dataset: str) -> list[str]:
    """Print the metrics of one process and of two hosts; the findings."""
    runs = {}
    for name, n_hosts in (("one process", 1), ("two hosts", 2)):
        folder = prepared(root / name, llama, dataset)
        runs[name] = finished(folder, n_hosts), users_of(folder)
    metrics = {name: metrics for name, (metrics, _) in runs.items()}
    rows = [
        [metric, *(own[metric] for own in metrics.values())] for metric in runs["one process"][0]
    ]
    for label, count in (("rows", len), ("users", lambda users: users["user_id"].nunique())):
        rows.append([label, *(count(users) for _, users in runs.values())])
    print(tabulate(rows, headers=["test", *runs], tablefmt="github"), flush=True)
    if rows[-1][1:] != rows[-2][1:]:
        return ["users stand in the table more than once"]
    return [
        f"{label} differs: {one} and {two}"
        for label, one, two in rows
        if abs(one - two) > (ROUNDING if "@" in label else 0)
    ]


def killed(root: Path, llama: Path, dataset: str, phase: str, rank: int) -> list[str]:
    """Kill a host in a phase, and let the run go on; prints a line of the table."""
    folder = prepared(root / "run", llama, dataset)
    hosts = started(folder, 2)
    wait_for(folder, hosts, PHASES[phase])
    kill(hosts[rank])
    begin = time.perf_counter()
    other = hosts[1 - rank]
    try:
        code = other.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired:
        kill(other)
        return [f"{phase}: the other host has not ended after {MOST_SECONDS} s"]
    seconds = time.perf_counter() - begin
    message = LOST.search(log_of(folder, 1 - rank))
    faults = [] if code else [f"{phase}: the other host ended with exit code 0"]
    if message is None:
        faults.append(f"{phase}: {log_of(folder, 1 - rank)[-1500:]}")
    shutil.copytree(folder, root / "again")
    metrics = {}
    for name, place, n_hosts in (("one process", folder, 1), ("two hosts", root / "again", 2)):
        metrics[name] = finished(place, n_hosts)
        if "Going on with the interrupted run" not in log_of(place, 0):
            faults.append(f"{phase}: the run did not go on in {name}")
    row = {"killed in": phase, "other ended after, s": f"{seconds:.1f}", "exit code": code}
    row |= {f"NDCG@10, goes on in {name}": own["ndcg@10"] for name, own in metrics.items()}
    print(tabulate([row | {"says": message and message[1]}], headers="keys", tablefmt="github"))
    sys.stdout.flush()
    return faults


def prepared(folder: Path, llama: Path, dataset: str) -> Path:
    """A folder with data and settings of the run."""
    few = {"rerank_candidates": 8} if dataset == "tiny" else {}
    return small_run.prepared(folder, llama, SETTINGS | few, dataset)


def started(folder: Path, n_hosts: int) -> list[subprocess.Popen]:
    """Start the command of each host; each has a log of its own."""
    of_all = ["--nproc=1", f"--world_size={n_hosts}", f"--port={free_port()}"]
    hosts = []
    for rank in range(n_hosts):
        options = [*of_all, f"--group_offset={rank}"] if n_hosts > 1 else []
        host = small_run.start(folder, *options, log=f"log-{rank}.txt")
        atexit.register(kill, host)
        hosts.append(host)
    return hosts


def kill(host: subprocess.Popen) -> None:
    """End a host with all its processes, where it has not ended by itself."""
    if host.poll() is None:
        os.killpg(host.pid, signal.SIGKILL)


def wait_for(folder: Path, hosts: Sequence[subprocess.Popen], words: str) -> None:
    """Wait until the first host's log has some words.

    Raises:
        RuntimeError: a host ended before.
    """
    while words not in log_of(folder, 0):
        for rank, host in enumerate(hosts):
            if host.poll() is not None:
                raise RuntimeError(log_of(folder, rank)[-3000:])
        time.sleep(0.05)


def finished(folder: Path, n_hosts: int) -> dict[str, float]:
    """Run to the end; the test metrics.

    Raises:
        RuntimeError: a host fails.
    """
    for rank, host in enumerate(started(folder, n_hosts)):
        if host.wait():
            raise RuntimeError(log_of(folder, rank)[-3000:])
    (text,) = RESULT.findall(log_of(folder, 0))
    return {metric: float(value) for metric, value in METRIC.findall(text)}


def users_of(folder: Path) -> pd.DataFrame:
    """The table of users that a run has left."""
    return pd.read_csv(checkpoint_of(folder / "saved").with_suffix(".users.csv"))


def log_of(folder: Path, rank: int) -> str:
    """What a host has logged so far."""
    return (folder / f"log-{rank}.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
