"""Several processes: their ranks, shares of rows, and what is gathered or averaged over them.

RecBole starts the processes (``--nproc``, ``--world_size``). Shares and seeds go by the global
rank, which counts over all machines. With one process every function does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_GLOO = "gloo/transport"  # the place in its source that gloo's plain RuntimeError names


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Say that a process was lost where what happens within fails of that.

    Raises:
        ProcessLostError: a connection to another process has ended; says what to do.
    """
    try:
        yield
    except RuntimeError as error:
        is_of_connection = isinstance(error, dist.DistError) or _GLOO in str(error)
        if not is_distributed() or not is_of_connection:
            raise
        others = ", ".join(str(other) for other in range(world_size()) if other != rank())
        raise ProcessLostError(
            f"Process {rank()} of {world_size()} has lost the connection to another one (rank "
            f"{others}), which was killed or has failed; its own log says why. Start the same "
            f"command again, with this or another number of processes: the run goes on. ({error})"
        ) from error


@contextmanager
def naming_meeting_point(ip: str, port: str | int) -> Iterator[None]:
    """Say where the processes of a run were to meet, where they cannot.

    Raises:
        ConnectionError: another program has the port, or nobody answers there; says what to do.
    """
    try:
        yield
    except dist.DistNetworkError as error:
        raise ConnectionError(
            f"The processes of this run cannot meet at --ip={ip} --port={port}: another run or "
            "program on this machine has that port, or nothing answers there. Start all processes "
            f"of the run with one free port, as by --port=5679. ({error})"
        ) from error


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The global rank of this process, 0 for the first of all machines."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes there are on all machines."""
    return dist.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        dist.barrier()


def share_of(rows: np.ndarray) -> np.ndarray:
    """This process's share of some rows; all of them where there are fewer rows than processes."""
    return rows[rank() :: world_size()] if len(rows) >= world_size() else rows


def gathered(value: Any) -> list[Any]:
    """What every process gives, by rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def without_repeated_rows(parts: list[Any], n_rows: int, without_last: Any) -> list[Any]:
    """Evaluation rows of all processes, each once.

    RecBole deals the rows out like cards and repeats the first ones until all processes have
    equally many. These repetitions are the last row of the last processes.

    Args:
        parts: what every process has of its rows, by rank; ``len`` of each is how many these are.
        n_rows: rows that were dealt out.
        without_last: a part without its last row.
    """
    surplus = sum(map(len, parts)) - n_rows if len(parts) > 1 else 0
    return [*parts[: len(parts) - surplus], *map(without_last, parts[len(parts) - surplus :])]


def from_first(value: Any) -> Any:
    """What the first process gives."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def mean_over_processes(value: float, device: torch.device) -> float:
    """The mean of what every process gives.

    Divided by the mean of all counts instead of its own, a process's sum of losses has a gradient
    whose mean over the processes is that of one process with all the rows.

    Args:
        value: of this process.
        device: that the back end sends from, the model's.
    """
    if not is_distributed():
        return value
    total = torch.tensor(value, dtype=torch.float32, device=device)
    dist.all_reduce(total)
    return total.item() / world_size()


def average_gradients(gradients: Sequence[torch.Tensor]) -> None:
    """Replace gradients by their mean over all processes, in one call."""
    if not is_distributed() or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
