"""The items that users have already interacted with, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class SeenItems:
    """The items that each user has interacted with in the training part, in compressed rows.

    Attributes:
        starts: int64 ``[n_users + 1]``; user ``u`` has ``items[starts[u] : starts[u + 1]]``.
        items: int64, sorted and distinct within a user.
    """

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def from_rows(
        cls, users: np.ndarray, targets: np.ndarray, histories: np.ndarray, n_users: int
    ) -> SeenItems:
        """Collect from training rows.

        Args:
            users: user of each row, ``[rows]``.
            targets: target item of each row, ``[rows]``.
            histories: history of each row, ``[rows, length]``, 0 is padding.
            n_users: users including padding.
        """
        # A user's items are the targets of their rows and the history of their first row.
        _, first = np.unique(users, return_index=True)
        first_histories = histories[first]  # [users, length]
        row, column = np.nonzero(first_histories)
        pairs = np.stack(
            [
                np.concatenate([users, users[first][row]]),
                np.concatenate([targets, first_histories[row, column]]),
            ],
            axis=1,
        )
        pairs = np.unique(pairs, axis=0)
        starts = np.searchsorted(pairs[:, 0], np.arange(n_users + 1))
        return cls(starts, np.ascontiguousarray(pairs[:, 1]))

    @classmethod
    def of_training(cls, dataset) -> SeenItems:
        """The items of the training part, a RecBole data set.

        Args:
            dataset: its rows have a user, a target and a history.
        """
        rows = dataset.inter_feat
        users, targets = np.asarray(rows[dataset.uid_field]), np.asarray(rows[dataset.iid_field])
        histories = np.asarray(rows[dataset.item_id_list_field])
        return cls.from_rows(users, targets, histories, dataset.user_num)

    @classmethod
    def from_histories(cls, histories: Sequence[Sequence[int]]) -> SeenItems:
        """The items of some histories; the history at place ``i`` is that of user ``i``."""
        distinct = [np.unique(np.asarray(history, dtype=np.int64)) for history in histories]
        starts = np.cumsum([0, *map(len, distinct)])
        return cls(starts, np.concatenate([*distinct, np.empty(0, dtype=np.int64)]))

    @classmethod
    def nothing(cls) -> SeenItems:
        """No items of any user: what is masked is then the history in the batch alone."""
        return cls(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64))

    def of(self, user: int) -> np.ndarray:
        """The sorted items of ``user``; empty for a user without training interactions."""
        if not 0 <= user < len(self.starts) - 1:
            return self.items[:0]
        return self.items[self.starts[user] : self.starts[user + 1]]

    @property
    def most(self) -> int:
        """Items of the user who has seen the most."""
        return int(np.diff(self.starts).max(initial=0))


def items_to_mask(rule: bool | str, seen: SeenItems) -> SeenItems | None:
    """What the key ``rerank_mask_seen`` takes from the training part.

    Args:
        rule: True masks all items seen; ``window`` only those of the history in the batch, as the
            official code does; False none.
        seen: items of the training part.

    Returns:
        the items that join the batch's histories; ``None`` where nothing is masked.
    """
    if rule == "window":
        return SeenItems.nothing()
    return seen if rule else None


def seen_mask(
    users: torch.Tensor, histories: torch.Tensor, seen: SeenItems | None, n_items: int
) -> torch.Tensor:
    """Which items each user has already seen.

    An evaluation batch carries only the last ``MAX_ITEM_LIST_LENGTH`` items of a history, its
    window; the user's training interactions complete it.

    Args:
        users: int64 internal user ids ``[batch]``.
        histories: int64 item ids ``[batch, length]``, 0 is padding.
        seen: items of the training part; ``None`` masks the window alone.
        n_items: items, padding included.

    Returns:
        bool ``[batch, n_items]``; the padding item's column is True.
    """
    mask = torch.zeros(len(users), n_items, dtype=torch.bool, device=histories.device)
    mask.scatter_(1, histories, True)
    if seen is not None:
        per_user = [seen.of(user) for user in users.tolist()]
        rows = np.repeat(np.arange(len(per_user)), [len(items) for items in per_user])
        columns = np.concatenate([*per_user, np.empty(0, dtype=np.int64)])
        mask[torch.from_numpy(rows), torch.from_numpy(columns)] = True
    mask[:, 0] = True
    return mask
