"""What other users chose after an item: evidence that a language model can read as titles.

A language model knows titles and not who chose what. Shown which items followed the history's last
items in other users' histories, it reads off them what it would else have to learn by heart
(collaborative evidence in the prompt: CoRAL, Wu et al. 2024, arXiv 2403.06447).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

SMOOTHING = 0.001  # share of an item that never followed
WINDOW = 5  # steps behind an item within which another counts as its follower


class Neighbours:
    """The items that most often followed each item in training histories.

    A follower d steps behind counts 1 / d, up to :data:`WINDOW` steps.

    Args:
        sequences: item ids of each user in chronological order, of the training part alone.
        n_items: items, the padding item 0 included.
        n_recent: how many of a history's last items bring their followers.
        n_followers: most followers of each that are shown.
    """

    def __init__(
        self, sequences: Mapping[int, np.ndarray], n_items: int, n_recent: int, n_followers: int
    ) -> None:
        self.n_recent, self.n_followers = n_recent, n_followers
        self._sequences = sequences
        pairs = [np.stack(pair) for own in sequences.values() for pair in _followers(own)]
        first, second, weights = np.concatenate([np.empty((3, 0)), *pairs], axis=1)
        places = first.astype(np.int64), second.astype(np.int64)
        self._counts = csr_array((weights, places), shape=(n_items, n_items))  # adds up repetitions
        self._counts.sort_indices()

    def before(
        self, history: Sequence[int], candidates: Sequence[int], user: int | None = None
    ) -> list[int]:
        """What is shown before a history: its last items, each with its followers behind it.

        Args:
            history: item ids in chronological order.
            candidates: items that may be shown as followers, since the others cannot be ranked.
            user: whose own training history does not count, as when it is learnt from.
        """
        shown: list[int] = []
        for item in history[max(0, len(history) - self.n_recent) :]:
            shown += [item, *self.of(item, candidates, user)]
        return shown

    def of(self, item: int, among: Sequence[int], user: int | None = None) -> list[int]:
        """The followers of an item, the most frequent first, equal ones by id.

        Args:
            item: its id.
            among, user: as the candidates and the user that :meth:`before` takes.
        """
        others = np.asarray(among)
        counts = self.counts(item, others, user)
        best_first = np.lexsort((others, -counts))[: self.n_followers]
        return others[best_first[counts[best_first] > 0]].tolist()

    def counts(self, item: int, others: np.ndarray, user: int | None = None) -> np.ndarray:
        """How often each of some others followed an item, float64 ``[len(others)]``.

        Items that the catalogue does not have followed nothing.
        """
        start, stop = self._counts.indptr[item : item + 2]
        items, counts = self._counts.indices[start:stop], self._counts.data[start:stop]
        found = np.zeros(len(others))
        if len(items):
            places = np.searchsorted(items, others).clip(max=len(items) - 1)
            found = np.where(items[places] == others, counts[places], 0.0)
        if user is not None:
            found = found - self._share(user, item, others)
        return found.round(9)  # equal counts are equal, whatever they were added up from

    def summed_shares(
        self, history: Sequence[int] | np.ndarray, others: np.ndarray, user: int | None = None
    ) -> np.ndarray:
        """Of the followers of a history's last items, which share each of some others is.

        Args:
            history, user: as :meth:`before` takes them.
            others: item ids.

        Returns:
            the sum over the last items, and :data:`SMOOTHING`; float64 ``[len(others)]``.
        """
        total = np.full(len(others), SMOOTHING)
        for item in history[max(0, len(history) - self.n_recent) :]:
            start, stop = self._counts.indptr[item : item + 2]
            of_all = max(1.0, self._counts.data[start:stop].sum())
            total += self.counts(item, others, user) / of_all
        return total

    def scores(self, histories: Sequence[Sequence[int]], candidates: np.ndarray) -> np.ndarray:
        """Logarithm of the :meth:`summed_shares` of each history's candidates.

        Args:
            histories: item ids of each row.
            candidates: item ids, ``[rows, K]``.

        Returns:
            float64 ``[rows, K]``.
        """
        rows = zip(histories, candidates, strict=True)
        return np.log(np.stack([self.summed_shares(history, pool) for history, pool in rows]))

    def _share(self, user: int, item: int, items: np.ndarray) -> np.ndarray:
        """What a user's own history adds to the counts of an item's followers; ``[len(items)]``."""
        own = self._sequences.get(user, np.empty(0, dtype=np.int64))
        share = np.zeros(len(items))
        for place in np.flatnonzero(own == item):
            for step, follower in enumerate(own[place + 1 : place + 1 + WINDOW], start=1):
                share[items == follower] += 1 / step
        return share


def training_sequences(
    users: np.ndarray, targets: np.ndarray, histories: np.ndarray, lengths: np.ndarray
) -> dict[int, np.ndarray]:
    """Each user's training items in chronological order, from RecBole's row for each prefix.

    Args:
        users, targets, lengths: of each row, ``[rows]``; a user's rows stand together, the
            earliest first.
        histories: of each row, ``[rows, L]``, 0 is padding.
    """
    if not len(users):
        return {}
    is_last = np.append(users[1:] != users[:-1], True)
    ends = np.flatnonzero(is_last).tolist()
    starts = [0, *(end + 1 for end in ends[:-1])]
    return {
        int(users[start]): np.concatenate(
            [histories[start, : lengths[start]], targets[start : end + 1]]
        )
        for start, end in zip(starts, ends, strict=True)
    }


def _followers(sequence: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Items, those that follow them, and what each pair counts."""
    for step in range(1, min(WINDOW, len(sequence) - 1) + 1):
        yield sequence[:-step], sequence[step:], np.full(len(sequence) - step, 1 / step)
