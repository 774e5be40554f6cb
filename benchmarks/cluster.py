"""Recommendations in shards by workers of Ray, against one process of one thread.

    python benchmarks/cluster.py --checkpoint saved/LlamaRec-….pth

Each row of the table is a simulated cluster on this machine: so many raylets with one CPU each,
and a worker of one thread on each. The histories are items drawn at random; results are compared
byte by byte. Needs Ray (docs/cluster.md).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from recbole_llamarec.recommend_ray import Workers, import_ray, recommend_shards  # noqa: E402
from recbole_llamarec.recommender import Recommender  # noqa: E402
from recbole_llamarec.results_folder import ResultsFolder  # noqa: E402

HISTORY = 10  # items
K = 10  # recommendations


def main(arguments: Sequence[str] | None = None) -> None:
    """Rank the same shards in one process and on each cluster; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data-path", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--lines", type=int, default=8, help="histories of a shard")
    options = parser.parse_args(arguments)
    if options.shards <= max(options.workers):
        parser.error(f"--shards is {options.shards}; give more than there are workers.")
    torch.set_num_threads(1)
    recommender = Recommender.from_checkpoint(options.checkpoint, options.data_path)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_shards(root / "histories", recommender.tokens[1:], options.shards, options.lines)
        alone = folder_of(root / "alone", options.checkpoint)
        rows = [["one process", None, alone_rate(alone, recommender), None]]
        load = partial(
            Recommender.from_checkpoint, options.checkpoint.absolute(), options.data_path
        )
        for n_workers in options.workers:
            folder = folder_of(root / str(n_workers), options.checkpoint)
            seconds = on_cluster(folder, load, n_workers)
            rate = rate_of(folder, n_workers, options.lines)
            rows.append([n_workers, seconds, rate, is_equal(folder, alone)])
    headers = ["workers", "s in all", "histories/s once they run", "equal bytes"]
    print(tabulate(rows, headers=headers, tablefmt="github", floatfmt=".2f"))


def write_shards(folder: Path, tokens: np.ndarray, n_shards: int, n_lines: int) -> None:
    """Write shards of random histories."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for n in range(n_shards):
        histories = [generator.choice(tokens, HISTORY, replace=False) for _ in range(n_lines)]
        text = "".join(json.dumps(history.tolist()) + "\n" for history in histories)
        (folder / f"{n:03}.jsonl").write_text(text, encoding="utf-8")


def folder_of(out: Path, checkpoint: Path) -> ResultsFolder:
    """A folder of results that has begun."""
    folder = ResultsFolder(out, checkpoint, out.parent / "histories", K)
    folder.begin()
    return folder


def alone_rate(folder: ResultsFolder, recommender: Recommender) -> float:
    """Histories a second of this process, behind its first shard, in which the model is loaded."""
    first, *others = folder.shards
    folder.rank(first, recommender)
    begin = time.perf_counter()
    for name in others:
        folder.rank(name, recommender)
    return sum(folder.shards[name].rows for name in others) / (time.perf_counter() - begin)


def on_cluster(folder: ResultsFolder, load: partial[Recommender], n_workers: int) -> float:
    """Rank all shards on raylets of one CPU each; the seconds, without the raylets' start."""
    ray = import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(n_workers - 1):
            cluster.add_node(num_cpus=1)
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ray.init(cluster.address, runtime_env={"env_vars": variables}, logging_level="error")
        begin = time.perf_counter()
        recommend_shards(folder, load, Workers(n_workers))
        return time.perf_counter() - begin
    finally:
        ray.shutdown()
        cluster.shutdown()


def rate_of(folder: ResultsFolder, n_workers: int, n_lines: int) -> float:
    """Histories a second from the end of each worker's first shard on, by the files' times."""
    ends = sorted(os.stat(folder.results(name)).st_mtime for name in folder.shards)
    return (len(ends) - n_workers) * n_lines / (ends[-1] - ends[n_workers - 1])


def is_equal(folder: ResultsFolder, other: ResultsFolder) -> bool:
    """Whether two folders hold the same results."""
    return all(
        folder.results(name).read_bytes() == other.results(name).read_bytes()
        for name in folder.shards
    )


if __name__ == "__main__":
    main()
