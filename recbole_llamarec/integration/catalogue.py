"""The ids of a checkpoint's items and users: its tokens, in the order of the weights' rows.

RecBole numbers tokens as they appear in the files, so that the same data in another order of lines
have other ids. A checkpoint therefore holds its tokens, and a data set that is made for it numbers
them as it does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import SequentialDataset
from recbole.data.dataset.dataset import Dataset
from recbole.utils import FeatureType

from recbole_llamarec.data.atomic_files import DataSetError

logger = logging.getLogger(__name__)

TOKENS = "tokens"  # key of a checkpoint
ITEMS, USERS = "items", "users"

_recbole_remap = Dataset._remap


@dataclass(frozen=True)
class TokenOrder:
    """How a data set is to number its items and users.

    Attributes:
        source: whose order it is, for messages.
        tokens: by ``items`` and ``users``, the tokens by id, the padding first.
        reads_users: whether weights belong to users, so that they must be the same.
    """

    source: str
    tokens: Mapping[str, Sequence[str]]
    reads_users: bool


def tokens_of(dataset: Any) -> dict[str, list[str]] | None:
    """Tokens of a sequential data set's items and users by id; ``None`` of any other."""
    if not isinstance(dataset, SequentialDataset):
        return None
    fields = {ITEMS: dataset.iid_field, USERS: dataset.uid_field}
    return {kind: dataset.field2id_token[field].tolist() for kind, field in fields.items()}


def order_in(checkpoint: Mapping[str, Any], file: str | Path) -> TokenOrder | None:
    """The order that a checkpoint's weights are of; ``None`` where it does not say.

    Args:
        checkpoint: from ``load_checkpoint``.
        file: where it is, for messages.

    Raises:
        ValueError: what stands for its tokens is none.
    """
    tokens = checkpoint.get(TOKENS)
    if tokens is None:
        logger.warning(
            f"The checkpoint {str(file)!r} holds no item tokens (an earlier version, or RecBole by "
            "itself, wrote it). It is right only for the very files that it was trained on."
        )
        return None
    is_right = isinstance(tokens, dict) and all(
        isinstance(part := tokens.get(kind), list)
        and all(isinstance(token, str) for token in part)
        and len(set(part)) == len(part) > 0
        for kind in (ITEMS, USERS)
    )
    if not is_right:
        raise ValueError(f"The tokens in the checkpoint {str(file)!r} are damaged; train anew.")
    weights = checkpoint["state_dict"].items()
    n_users = len(tokens[USERS])
    reads_users = any(
        "user" in name or ("emb" in name and "item" not in name and len(w.shape or [0]) == 2
                           and w.shape[0] == n_users)
        for name, w in weights
    )  # fmt: skip
    return TokenOrder(f"the checkpoint {str(file)!r}", tokens, reads_users)


def number_by(config: Any, order: TokenOrder | None) -> None:
    """Let the data sets that are made of a ``Config`` number their tokens in an order."""
    config.token_order = order


def order_of(config: Any) -> TokenOrder | None:
    """What :func:`number_by` has set."""
    return getattr(config, "token_order", None)


def require_same(order: TokenOrder | None, tokens: Mapping[str, Sequence[str]] | None) -> None:
    """Check that weights are of a data set's numbers.

    Args:
        order: that of the weights.
        tokens: of the data set, from :func:`tokens_of`; ``None`` is not known.

    Raises:
        DataSetError: items, or users where weights belong to them, differ or are in another order.
    """
    if order is None or tokens is None:
        return
    for kind in (ITEMS, USERS) if order.reads_users else (ITEMS,):
        if list(order.tokens[kind]) != list(tokens[kind]):
            _require_same_set(order, kind, tokens[kind])
            raise DataSetError(
                f"The {kind} of {order.source} are those of the data set, but it numbers them "
                "otherwise: the lines of the files stood in another order. Load the checkpoint "
                "with load_data_and_model, or name it as retriever_checkpoint before the data set "
                "is made; both number the data set as the checkpoint does."
            )


_WITHOUT_TEXT = (
    " LlamaRec leaves items without text out (item_text_missing: drop), which a retriever trained "
    "as a model of its own keeps: --model=LlamaRec --ranking_method=none trains one for LlamaRec."
)


def _require_same_set(order: TokenOrder, kind: str, present: Sequence[str]) -> None:
    known, found = set(order.tokens[kind]), set(present)
    new, gone = sorted(found - known), sorted(known - found)
    if new or gone:
        parts = []
        if new:
            parts.append(f"it does not know {len(new)} of {len(found) - 1}, such as {new[0]!r}")
        if gone:
            parts.append(f"{len(gone)} of its {len(known) - 1} are missing, such as {gone[0]!r}")
        raise DataSetError(
            f"The data set's {kind} are not those that {order.source} was trained on: "
            f"{'; '.join(parts)}. Train anew on these data, or give the files (and filters) that "
            "it was trained on." + (_WITHOUT_TEXT if gone and kind == ITEMS else "")
        )


def remap(self, remap_list) -> None:
    """RecBole's ``Dataset._remap``, which numbers items and users as a checkpoint does.

    Raises:
        DataSetError: the data set has other items than the checkpoint; says how many.
    """
    _recbole_remap(self, remap_list)
    order = order_of(self.config)
    fields = {field for _, field, _ in remap_list}
    for kind, own in ((ITEMS, self.iid_field), (USERS, self.uid_field)):
        if order is None or own not in fields:
            continue
        present, wanted = self.field2id_token[own].tolist(), list(order.tokens[kind])
        if kind == ITEMS or order.reads_users:
            _require_same_set(order, kind, present)
        elif set(present) != set(wanted):
            n_new = len(set(present) - set(wanted))
            self.logger.info(f"{n_new} users are not among those that {order.source} has seen")
            continue
        if present != wanted:
            _renumber(self, remap_list, present, wanted)


def _renumber(self, remap_list, present: list[str], wanted: list[str]) -> None:
    """Give the tokens of columns that share their ids the ids of ``wanted``."""
    ids = {token: number for number, token in enumerate(wanted)}
    new = np.array([ids[token] for token in present])
    for feat, field, kind in remap_list:
        if kind == FeatureType.TOKEN:
            feat[field] = new[feat[field].to_numpy()]
        else:
            feat[field] = feat[field].map(lambda row: new[row])
        self.field2id_token[field] = np.array(wanted)
        self.field2token_id[field] = ids
    self.logger.info(f"{len(wanted) - 1} tokens of {remap_list[0][1]} are numbered as trained")


def install() -> None:
    """Install the shim of ``Dataset``; a second call changes nothing."""
    Dataset._remap = remap
