"""Training of LRURec on whole sequences instead of RecBole's one row for each prefix."""

from typing import Any

import numpy as np
import numpy.typing as npt
from recbole.data.dataloader import TrainDataLoader
from recbole.trainer import Trainer


def window_rows(
    user_ids: npt.NDArray[np.int64], item_lengths: npt.NDArray[np.int64], window: int
) -> npt.NDArray[np.int64]:
    """Choose the prefix rows whose windows cover every position of every user once.

    RecBole makes one row for each training position p = 1, 2, .. of a user: its history is the
    last min(p, window) items before p, its target the item at p. A model that is trained at every
    position of a row learns the targets p - length + 1 .. p from it. Kept are therefore a user's
    last row and every row ``window`` positions before.

    Below ``window`` the length is the position, so rows may come in any order there; at ``window``
    it says no more, and the rows of one user must come in order of time, as RecBole's do. Other
    users' rows may lie between them. Where a user's rows have gaps (ready-made splits), each row's
    target is still covered, but neighbouring windows may overlap.

    Args:
        user_ids: User of each row, ``[n_rows]``.
        item_lengths: Length of each row's history, ``[n_rows]``, at least 1.
        window: MAX_ITEM_LIST_LENGTH, in items, at least 1.

    Returns:
        Indices of the rows to keep, ascending, int64.

    Raises:
        ValueError: ``window`` is below 1 or the arrays differ in length.
    """
    if window < 1:
        raise ValueError(f"window is {window}, allowed: at least 1")
    if len(user_ids) != len(item_lengths):
        raise ValueError(
            f"user_ids has {len(user_ids)} rows and item_lengths {len(item_lengths)}, allowed: as"
            " many of each"
        )
    if len(user_ids) == 0:
        return np.empty(0, dtype=np.int64)

    lengths = np.minimum(item_lengths, window)
    order = np.lexsort((lengths, user_ids))  # stable: rows of full length keep their order
    users, lengths = user_ids[order], lengths[order]

    ends = np.append(np.flatnonzero(users[1:] != users[:-1]), len(users) - 1)  # last row of each
    sizes = np.diff(ends, prepend=-1)  # rows of each user
    is_full = lengths == window
    fulls = np.cumsum(is_full)  # full rows so far
    fulls_before_user = np.repeat(fulls[ends] - np.add.reduceat(is_full, ends - sizes + 1), sizes)
    positions = np.where(is_full, window + fulls - fulls_before_user - 1, lengths)

    blocks = (np.repeat(positions[ends], sizes) - positions) // window  # 0 is a user's last
    is_kept = np.append((users[1:] != users[:-1]) | (blocks[1:] != blocks[:-1]), True)
    return np.sort(order[is_kept])


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
