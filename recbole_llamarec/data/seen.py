"""The items that users have already interacted with, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recbole_llamarec.data.chronology import ChoiceRows, Chronology

# Column of a data set's rows: how many of the user's items were chosen before the row's target.
CHOSEN_BEFORE = "_chosen_before"


@dataclass(frozen=True)
class SeenItems:
    """The items that each user has chosen, in compressed rows.

    Attributes:
        starts: int64 ``[n_users + 1]``; user ``u`` has ``items[starts[u] : starts[u + 1]]``.
        items: int64, in chronological order within a user; an item may repeat.
    """

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of_training(cls, dataset) -> SeenItems:
        """The items of the training part, a RecBole data set: of all windows and all targets."""
        chosen = Chronology.of(ChoiceRows.of(dataset), dataset.user_num)
        return cls(chosen.starts, chosen.items)

    @classmethod
    def from_histories(cls, histories: Sequence[Sequence[int]]) -> SeenItems:
        """The items of some histories; the history at place ``i`` is that of user ``i``."""
        starts = np.cumsum([0, *map(len, histories)])
        return cls(starts, np.concatenate([*histories, []]).astype(np.int64))

    @classmethod
    def nothing(cls) -> SeenItems:
        """No items of any user: what is masked is then the history in the batch alone."""
        return cls(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64))

    def of(self, user: int, before: int | None = None) -> np.ndarray:
        """The items of ``user``, the first ``before`` of them; empty for a user without any."""
        if not 0 <= user < len(self.starts) - 1:
            return self.items[:0]
        return self.items[self.starts[user] : self.starts[user + 1]][:before]

    def most(self, but_last: bool = False) -> int:
        """Distinct items of the user who has chosen the most.

        Args:
            but_last: leave each user's last choice out, before which all others stand.
        """
        users = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        is_last = np.append(users[1:] != users[:-1], True)[: len(users)]
        pairs = np.stack([users, self.items], axis=1)[~is_last if but_last else slice(None)]
        return int(np.bincount(np.unique(pairs, axis=0)[:, 0], minlength=1).max())


def items_to_mask(rule: bool | str, seen: SeenItems) -> SeenItems | None:
    """What the key ``rerank_mask_seen`` masks beside the histories in a batch.

    Args:
        rule: True masks all items seen; ``window`` only those of the history in the batch, as the
            official code does; False none.
        seen: what each user has chosen.

    Returns:
        the items that join the batch's histories; ``None`` where nothing is masked.
    """
    if rule == "window":
        return SeenItems.nothing()
    return seen if rule else None


def seen_mask(
    users: torch.Tensor,
    histories: torch.Tensor,
    seen: SeenItems | None,
    n_items: int,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which items each user has already seen.

    A batch carries only the last ``MAX_ITEM_LIST_LENGTH`` items of a history, its window; what else
    the user has chosen before completes it.

    Args:
        users: int64 internal user ids ``[batch]``.
        histories: int64 item ids ``[batch, length]``, 0 is padding.
        seen: what each user has chosen; ``None`` masks the window alone.
        n_items: items, padding included.
        before: how many of the user's items in ``seen`` stand before each row's target, int64
            ``[batch]``; all of them if left out.

    Returns:
        bool ``[batch, n_items]``; the padding item's column is True.
    """
    mask = torch.zeros(len(users), n_items, dtype=torch.bool, device=histories.device)
    mask.scatter_(1, histories, True)
    if seen is not None:
        firsts = [None] * len(users) if before is None else before.tolist()
        per_row = [seen.of(*row) for row in zip(users.tolist(), firsts, strict=True)]
        rows = np.repeat(np.arange(len(per_row)), [len(items) for items in per_row])
        columns = np.concatenate([*per_row, np.empty(0, dtype=np.int64)])
        mask[torch.from_numpy(rows), torch.from_numpy(columns)] = True
    mask[:, 0] = True
    return mask


def chosen_before(interaction: Any) -> torch.Tensor | None:
    """The column ``CHOSEN_BEFORE`` of RecBole's batch; ``None`` where it has none."""
    return interaction[CHOSEN_BEFORE] if CHOSEN_BEFORE in interaction.interaction else None


def hidden_targets(dataset, rule: bool | str) -> int:
    """How many rows of an evaluation part have a target that the mask puts behind all others.

    Args:
        dataset: a part of a ``LlamaRecDataset``.
        rule: the key ``rerank_mask_seen``.
    """
    rows = dataset.inter_feat
    targets = np.asarray(rows[dataset.iid_field])
    masked = items_to_mask(rule, dataset.chosen)
    if masked is None:
        return 0
    hidden = (np.asarray(rows[dataset.item_id_list_field]) == targets[:, None]).any(1)
    users, before = rows[dataset.uid_field].tolist(), rows[CHOSEN_BEFORE].tolist()
    for row in np.flatnonzero(~hidden):
        hidden[row] = (masked.of(users[row], before[row]) == targets[row]).any()
    return int(hidden.sum())


def hidden_warning(n_hidden: int, n_rows: int, part: str) -> str | None:
    """What to say where the mask hides targets, as of users who choose again; else ``None``.

    Args:
        n_hidden: rows whose target is masked.
        n_rows: rows of the part.
        part: its name.
    """
    if not n_hidden:
        return None
    return (
        f"rerank_mask_seen hides the targets of {n_hidden} of {n_rows} {part} rows: their users "
        "have chosen the item before, and it stands behind all others. Where users choose again, "
        "set rerank_mask_seen: False."
    )
