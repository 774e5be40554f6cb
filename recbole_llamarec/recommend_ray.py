"""Results in shards by Ray Data: each worker holds a model and ranks one shard at a time.

A row of Ray's data set is the name of a shard, and the worker that gets it reads the histories and
writes the results. Ray's own writers name files by blocks, which they cut by size, so that neither
a file's name nor its end would say which histories it holds.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from recbole_llamarec.results_folder import Recommends, ResultsFolder

MOST_RESTARTS = 3  # of one worker; a shard that kills whoever ranks it must end the run
NEEDS_RAY = '--engine ray needs Ray: pip install "ray[data,tune]>=2.60".'
SAME_PATHS = (
    "Every machine must read --checkpoint, --data-path and --histories, and write to --out, under "
    "the paths of the machine that the command is given on."
)


@dataclass(frozen=True)
class Workers:
    """The processes that rank.

    Args:
        number: at most so many.
        cpus: CPUs that each of them reserves.
        gpus: GPUs that each of them reserves; workers share a GPU by a fraction below 1.

    Raises:
        ValueError: a number is out of range.
    """

    number: int = 1
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"--workers is {self.number}; it must be 1 or more.")
        if not 0 < self.cpus < float("inf"):
            raise ValueError(f"--cpus-per-worker is {self.cpus:g}; it must be above 0.")
        if not 0 <= self.gpus < float("inf") or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(
                f"--gpus-per-worker is {self.gpus:g}; it must be a whole number or below 1."
            )


class ShardWorker:
    """What a worker does with the shards that it is given; it loads its model for the first one.

    Args:
        folder: of the results.
        load: makes the worker's recommender.
        is_on_gpu: whether the worker has reserved a GPU.
    """

    def __init__(
        self, folder: ResultsFolder, load: Callable[[], Recommends], is_on_gpu: bool
    ) -> None:
        self._folder, self._load = folder, load
        if not is_on_gpu:  # Ray hides what another worker has reserved from those alone that have
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    @cached_property
    def recommender(self) -> Recommends:
        """Loaded where this machine has the files of the run."""
        self._folder.require_here()
        return self._load()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Rank one shard.

        Args:
            batch: its name as ``shard`` ``[1]``.

        Returns:
            the same, and as ``fault`` what went wrong, or nothing.
        """
        (name,) = batch["shard"].tolist()
        try:
            self._folder.rank(name, self.recommender)
            fault = ""
        except (ValueError, OSError) as error:
            fault = f"{name} on {platform.node()}: {error}"
        return {"shard": [name], "fault": [fault]}


def import_ray() -> Any:
    """Ray with its data sets.

    Raises:
        ImportError: it is not installed; says how it is.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"{NEEDS_RAY} ({error})") from error
    return ray


def recommend_shards(
    folder: ResultsFolder,
    load: Callable[[], Recommends],
    workers: Workers,
    address: str | None = None,
) -> None:
    """Rank the shards that have no results yet.

    Args:
        folder: of the results, which has begun.
        load: makes a recommender on each worker, where it must find the same files.
        workers: how many, and what they reserve.
        address: of a cluster, as ``ray.init`` takes it. If left out it is that of the environment
            variable ``RAY_ADDRESS``, or of a cluster that runs on this machine, or there is none
            and Ray is started here for the time of this call.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no machine has what a worker reserves.
        ChildProcessError: workers failed; what is finished stays.
    """
    ray = import_ray()
    pending = folder.pending
    with _connected(ray, address):
        _require_room(ray.nodes(), workers)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"shard": name} for name in pending]
        ranked = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardWorker,
            fn_constructor_args=(folder, load, workers.gpus > 0),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(workers.number, len(rows)),
                max_tasks_in_flight_per_actor=1,  # a shard waits for whichever worker is free
            ),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=MOST_RESTARTS,
            max_task_retries=MOST_RESTARTS,
        )
        n_rows = sum(shard.rows for shard in folder.shards.values())
        n_pending = sum(folder.shards[name].rows for name in pending)
        with tqdm(total=n_rows, initial=n_rows - n_pending, unit="history", ncols=100) as progress:
            try:
                for row in ranked.iter_rows():
                    if row["fault"]:
                        raise ChildProcessError(f"{row['fault']} {SAME_PATHS}")
                    progress.update(folder.shards[row["shard"]].rows)
            except ray.exceptions.RayError as error:
                raise ChildProcessError(
                    f"--engine ray: the workers failed. What is finished stays; give the same "
                    f"command again. {error}"
                ) from error


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Within, this process belongs to a cluster; it stays in one that it belonged to before."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, logging_level="warning")
    except (ConnectionError, ValueError) as error:
        raise ChildProcessError(f"--ray-address: {address!r} is not reached: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_room(nodes: list[dict[str, Any]], workers: Workers) -> None:
    """Check that a machine has what one worker reserves; Ray would wait for one."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    for own in machines:
        if own.get("CPU", 0) >= workers.cpus and own.get("GPU", 0) >= workers.gpus:
            return
    found = ", ".join(f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines)
    raise ValueError(
        f"No machine has --cpus-per-worker {workers.cpus:g} and --gpus-per-worker "
        f"{workers.gpus:g}: they have {found}. Reserve less, or add a machine."
    )
