"""The leave-one-out split as a file that can be compared between runs and machines."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
from recbole.data import data_preparation


@dataclass(frozen=True)
class SplitSummary:
    """What a prepared data set is made of.

    Attributes:
        users, items, interactions: counts after filtering (the paper's Table 2).
        mean_length: interactions a user.
        sha256: of :func:`split_text`, in hexadecimal.
    """

    users: int
    items: int
    interactions: int
    mean_length: float
    sha256: str


def split_text(valid_data, test_data) -> str:
    """Every user's validation and test target, as tab-separated lines.

    Args:
        valid_data, test_data: RecBole's evaluation loaders.

    Returns:
        a head line, then ``phase  user_id  item_id`` for each evaluation row, sorted by phase and
        user token; a user with several targets keeps their order.
    """
    lines = []
    for phase, loader in (("test", test_data), ("valid", valid_data)):
        dataset = loader.dataset
        rows = dataset.inter_feat
        users = dataset.id2token(dataset.uid_field, rows[dataset.uid_field].numpy())
        items = dataset.id2token(dataset.iid_field, rows[dataset.iid_field].numpy())
        order = np.argsort(users.astype(str), kind="stable")
        lines += [f"{phase}\t{users[i]}\t{items[i]}" for i in order]
    return "\n".join(["phase\tuser_id\titem_id", *lines]) + "\n"


def prepare_split(config, dataset) -> tuple[SplitSummary, tuple]:
    """Count a data set, split it, and digest the split.

    Args:
        config: the RecBole ``Config`` of ``dataset``.
        dataset: a data set that has not been built yet.

    Returns:
        the summary, and RecBole's training, validation and test loaders.
    """
    interactions = dataset.inter_num
    users = len(np.unique(dataset.inter_feat[dataset.uid_field]))
    items = len(np.unique(dataset.inter_feat[dataset.iid_field]))
    loaders = data_preparation(config, dataset)
    digest = hashlib.sha256(split_text(*loaders[1:]).encode()).hexdigest()
    return SplitSummary(users, items, interactions, interactions / users, digest), loaders


def describe(summary: SplitSummary) -> str:
    """The summary as one line a figure."""
    return "\n".join(
        f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in asdict(summary).items()
    )
