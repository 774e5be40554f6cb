"""Training rows for several processes, in the order in which one process would draw them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from torch.utils.data import RandomSampler
from torch.utils.data.distributed import DistributedSampler

_recbole_init = AbstractDataLoader.__init__


class DealingSampler(DistributedSampler):
    """Deals out rows like cards, as torch's sampler does, but shuffled as one process shuffles.

    RecBole divides ``train_batch_size`` by the number of processes, so that what they draw at one
    step are together the rows of one process's batch, if it can be divided. Each row is dealt once,
    unless the last batch has fewer rows than there are processes: all need one, and it is filled up
    with the first rows.

    Attributes:
        generator: that of the loader, which draws from it as in one process.
        step: rows of a batch of each process.
    """

    generator: torch.Generator
    step: int

    def __iter__(self) -> Iterator[int]:
        rows: Any = self.dataset  # a list
        order = list(RandomSampler(rows, generator=self.generator))
        n_last = len(order) % (self.step * self.num_replicas)
        n_absent = self.num_replicas - n_last if 0 < n_last < self.num_replicas else 0
        return islice(cycle(order), self.rank, len(order) + n_absent, self.num_replicas)


def init_loader(self, config, dataset, sampler, shuffle=False) -> None:
    """RecBole's ``AbstractDataLoader.__init__``; what it shuffles, :class:`DealingSampler` deals.

    RecBole's sampler shuffles with a seed of its own, so that several processes would train on
    other batches than one.
    """
    _recbole_init(self, config, dataset, sampler, shuffle)
    if shuffle and isinstance(self.sampler, DistributedSampler):
        own: Any = self.sampler
        own.__class__ = DealingSampler  # a loader's sampler cannot be replaced
        own.generator, own.step = self.generator, self.step


def install() -> None:
    """Install the shim; a second call changes nothing."""
    AbstractDataLoader.__init__ = init_loader
