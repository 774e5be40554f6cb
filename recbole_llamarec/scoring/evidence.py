"""Evidence: what other users chose after the last items of a history, as a scorer.

Counts of item-to-item transitions in the training part. They need no language model, and a run
shows what they add under their own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recbole_llamarec.data.chronology import ChoiceRows, Chronology
from recbole_llamarec.scoring.scorer import EVIDENCE, Rows, ScorerParts

# Counts by popularity that join those of each item's followers. On validation, of 10, 30,
# 100 and 300, 100 adds most to LRURec on MovieLens-latest-small, and 0.003 nats less than 300 on
# Amazon Beauty; on both more than a constant share.
PRIOR_COUNT = 100.0


class Evidence:
    """How often candidates followed the last items of a history in training histories.

    An item d steps behind another counts 1 / d, up to ``window`` steps.

    Args:
        sequences: item ids of each user in chronological order, of the training part alone; a user
            has several where it is not known what stood between them.
        n_items: items, the padding item 0 included.
        n_recent: how many of a history's last items are looked up.
        window: steps behind an item within which another counts as its follower.
    """

    name = EVIDENCE

    def __init__(
        self, sequences: Iterable[np.ndarray], n_items: int, n_recent: int, window: int
    ) -> None:
        self.n_recent, self.window = n_recent, window
        sequences = list(sequences)
        self._counts = csr_array((n_items, n_items))
        for step in range(1, window + 1):  # one at a time, so that memory holds sums alone
            pairs = [(own[:-step], own[step:]) for own in sequences if len(own) > step]
            if not pairs:
                break
            first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
            weights = np.full(len(first), 1 / step)
            self._counts += csr_array((weights, (first, second)), shape=(n_items, n_items))
        self._counts.sort_indices()
        chosen = np.bincount(np.concatenate([[0], *sequences]), minlength=n_items)
        chosen[0] = 0
        # one choice more than there were, so that an item that nobody has chosen is not impossible
        self._popularity = (chosen + 1) / (chosen.sum() + n_items)

    @classmethod
    def build(cls, parts: ScorerParts) -> Evidence:
        """Count the transitions of a run's training part (``evidence_items``, ``_window``)."""
        settings = parts.settings
        return cls.of(parts.dataset, settings.evidence_items, settings.evidence_window)

    @classmethod
    def of(cls, dataset: Any, n_recent: int, window: int) -> Evidence:
        """Count the transitions of a training part, RecBole's ``Dataset``."""
        sequences = Chronology.of(ChoiceRows.of(dataset), dataset.user_num).sequences()
        return cls(sequences, dataset.item_num, n_recent, window)

    def scores(self, rows: Rows, items: Tensor) -> Tensor:
        """Score candidates as followers of each history's last items.

        Each item's followers are smoothed by popularity (Dirichlet prior: Zhai and Lafferty 2001):
        where there are few, their counts say little beside what is chosen everywhere. The score
        is the logarithm of the mean over the last items; for an empty history popularity's.

        Args:
            rows: histories, R of them.
            items: candidates, int64 ``[R, K]``.

        Returns:
            float32 ``[R, K]``.
        """
        pairs = zip(rows.histories, items.numpy(), strict=True)
        means = [self.shares(history, candidates) for history, candidates in pairs]
        stacked = np.stack(means) if means else np.empty(tuple(items.shape))
        return torch.from_numpy(np.log(stacked)).float()  # [R, K]

    def state(self) -> dict[str, Any]:
        """Nothing: counts are made again from the training part."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to take."""

    def counts(self, item: int, others: np.ndarray) -> np.ndarray:
        """How often each of some others followed an item, float64 ``[len(others)]``."""
        start, stop = self._counts.indptr[item : item + 2]
        items, counts = self._counts.indices[start:stop], self._counts.data[start:stop]
        if not len(items):
            return np.zeros(len(others))
        places = np.searchsorted(items, others).clip(max=len(items) - 1)
        # rounded, so that equal counts are equal whatever they were added up from
        return np.where(items[places] == others, counts[places], 0.0).round(9)

    def shares(
        self, history: Sequence[int], others: np.ndarray, uncounted: int | None = None
    ) -> np.ndarray:
        """Mean of the smoothed shares of some items behind a history's last ones.

        Args:
            history: item ids, the oldest first.
            others: item ids, ``[K]``.
            uncounted: the item that was chosen next, if this choice is not to count.

        Returns:
            float64 ``[K]``.
        """
        popularity = self._popularity[others]
        recent = history[max(0, len(history) - self.n_recent) :]
        shares = []
        for place, item in enumerate(recent):
            steps = len(recent) - place
            own = 1 / steps if uncounted is not None and steps <= self.window else 0.0
            counts = self.counts(item, others) - own * (others == uncounted)
            total = self._total(item) - own
            shares.append((counts + PRIOR_COUNT * popularity) / (total + PRIOR_COUNT))
        return np.mean(shares, axis=0) if shares else popularity

    def _total(self, item: int) -> float:
        """What all followers of an item count together."""
        start, stop = self._counts.indptr[item : item + 2]
        return float(self._counts.data[start:stop].sum())
