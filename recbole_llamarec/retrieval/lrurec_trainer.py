"""Training of LRURec on whole sequences instead of RecBole's one row for each prefix."""

from typing import Any

import numpy as np
import numpy.typing as npt
from recbole.data.dataloader import TrainDataLoader
from recbole.trainer import Trainer

from recbole_llamarec.data.seen import CHOSEN_BEFORE


def window_rows(
    users: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    item_lengths: npt.NDArray[np.int64],
    window: int,
) -> npt.NDArray[np.int64]:
    """Choose rows whose windows cover every position of every user once.

    RecBole makes one row for each training position p = 1, 2, .. of a user: its history is the
    last min(p, window) items before p, its target the item at p. A model that is trained at every
    position of a row learns the targets p - length + 1 .. p from it. Kept are therefore a user's
    last row and, again and again, the last row whose target no kept row teaches. Where a user's
    rows have gaps (ready-made splits), the positions in them that no window shows are left out.

    Args:
        users: User of each row, ``[n_rows]``, in any order.
        before: The position of each row's target: how many of the user's items stand before it.
        item_lengths: Length of each row's history, ``[n_rows]``.
        window: MAX_ITEM_LIST_LENGTH, in items, at least 1.

    Returns:
        Indices of the rows to keep, ascending, int64.

    Raises:
        ValueError: ``window`` is below 1 or the arrays differ in length.
    """
    if window < 1:
        raise ValueError(f"window is {window}, allowed: at least 1")
    if not len(users) == len(before) == len(item_lengths):
        raise ValueError(
            f"users has {len(users)} rows, before {len(before)} and item_lengths "
            f"{len(item_lengths)}, allowed: as many of each"
        )
    lengths = np.minimum(item_lengths, window)
    order = np.lexsort((before, users))
    begins = np.flatnonzero(users[order][1:] != users[order][:-1]) + 1
    kept = []
    for own in np.split(order, begins):
        positions, row = before[own], len(own) - 1
        while row >= 0:
            kept.append(own[row])
            taught = max(1, lengths[own[row]])
            row = int(np.searchsorted(positions, positions[row] - taught, side="right")) - 1
    return np.sort(np.array(kept, dtype=np.int64))


def window_loader(config: Any, train_data: TrainDataLoader) -> TrainDataLoader:
    """Reduce a loader of prefix rows to the rows that :func:`window_rows` keeps.

    Args:
        config: RecBole's ``Config``; train_batch_size now counts windows.
        train_data: RecBole's training loader; it stays as it is.

    Returns:
        A new loader over a shallow copy of the data set.
    """
    dataset = train_data.dataset
    rows = dataset.inter_feat
    kept = window_rows(
        rows[dataset.uid_field].numpy(),
        rows[CHOSEN_BEFORE].numpy(),
        rows[dataset.item_list_length_field].numpy(),
        config["MAX_ITEM_LIST_LENGTH"],
    )
    # the loss is over all items, so there are no negatives to sample
    return TrainDataLoader(config, dataset.copy(rows[kept]), None, shuffle=train_data.shuffle)


class LRURecTrainer(Trainer):
    """RecBole's trainer, but an epoch passes once over every position of every user.

    Only the epoch's batches change: what ``fit`` collects from the training data for metrics
    (such as item counts) still comes from all rows.
    """

    runs_recboles_loop = True  # ``fit`` below adds nothing to it: see integration/resume.py

    def fit(self, train_data: TrainDataLoader, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer.fit`` does, on windows of ``train_data``."""
        self._windows = window_loader(self.config, train_data)
        self.logger.info(
            f"LRURec trains on {len(self._windows.dataset)} windows that cover the"
            f" {len(train_data.dataset)} training rows"
        )
        return super().fit(train_data, *args, **kwargs)

    def _train_epoch(self, train_data: TrainDataLoader, *args: Any, **kwargs: Any) -> Any:
        return super()._train_epoch(self._windows, *args, **kwargs)
