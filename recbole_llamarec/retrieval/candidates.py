"""What a retriever proposes: an order of all items, and the first of them as candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llamarec.data.seen import SeenItems, seen_mask
from recbole_llamarec.finite import NotFiniteError, check_finite

REMEDY = "Train it with a lower learning_rate, a key of retriever_config."
LEFT_OUT = -1e38  # the score of an item that a retriever which leaves items out does not propose
BEHIND = 50.0  # nats between the lowest score of what takes part and all that stands behind


@dataclass(frozen=True)
class Candidates:
    """What a retriever proposes for a batch of B histories.

    Attributes:
        order: int64 item ids ``[B, N]``, each row a permutation, best first.
        items: int64 ``[B, K]``, the candidates: the first K of ``order``.
        scores: float32 ``[B, K]``, the retriever's log-probabilities among the candidates.
        n_open: int64 ``[B]``, how many items take part: the first of ``order``. All behind them,
            items seen or left out by the retriever, stay there whatever the scorers say.
    """

    order: Tensor
    items: Tensor
    scores: Tensor
    n_open: Tensor

    @property
    def masked(self) -> Tensor:
        """Candidates that do not take part, where fewer than K items do; bool ``[B, K]``."""
        columns = torch.arange(self.items.shape[1], device=self.items.device)
        return columns >= self.n_open.unsqueeze(1)

    @property
    def n_items(self) -> int:
        """Items of the catalogue, the padding item included: N."""
        return self.order.shape[1]

    def reordered(self, rows: Tensor, best_first: Tensor) -> Tensor:
        """Scores for RecBole's evaluator, with the candidates of some rows in another order.

        Args:
            rows: int64 ``[R]``, the rows of the batch whose candidates are put into another order.
            best_first: int64 ``[R, K]``, for each of these rows the columns of ``items``, best
                first.

        Returns:
            float32 ``[B, N]``: minus each item's position. A new contiguous tensor, since RecBole
            writes into it.
        """
        device, n_candidates = self.items.device, self.items.shape[1]
        rows, best_first = rows.to(device), best_first.to(device)
        scores = scores_from_order(self.order)
        items = self.items[rows].gather(1, best_first)  # [R, K]
        scores[rows.unsqueeze(1), items] = -torch.arange(
            n_candidates, dtype=scores.dtype, device=device
        )
        return scores


def catalogue_scores(predict: Callable[[Any], Tensor], interaction) -> Tensor:
    """A retriever's score of each item for each row.

    The width is not read off its ``n_items``, which some models raise for a mask token.

    Args:
        predict: ``full_sort_predict``, whose result may be flat.
        interaction: RecBole ``Interaction`` of B rows.

    Returns:
        ``[B, N]``.
    """
    return predict(interaction).view(len(interaction), -1)


@torch.no_grad()
def propose(retriever, interaction, k: int, masked: Tensor | None = None) -> Candidates:
    """Let a retriever order all items, and take the first as candidates.

    Args:
        retriever: gives scores by ``full_sort_predict``. One with ``leaves_out = True`` proposes
            not all items: those with the score ``LEFT_OUT`` take no part, and stand behind what it
            proposes; those with minus infinity stand behind the whole catalogue.
        interaction: RecBole ``Interaction`` of B rows, with users and histories.
        k: candidates of each row; no more than there are items.
        masked: bool ``[B, N]``, items that stand behind all others, from
            :func:`~recbole_llamarec.data.seen.seen_mask`; ``None`` masks none.

    Returns:
        the order, the candidates and their log-probabilities: a softmax over the K candidates,
        computed in float64.

    Raises:
        NotFiniteError: a score is NaN, or a candidate's is infinite.
        ValueError: there are more than 2^28 items.
    """
    scores = catalogue_scores(retriever.full_sort_predict, interaction).float()  # [B, N]
    leaves_out = getattr(retriever, "leaves_out", False)
    if leaves_out:
        left_out = scores <= LEFT_OUT
        if masked is not None:  # items seen stand behind those left out
            scores = torch.where(masked, scores.clamp(max=2 * LEFT_OUT), scores)
        masked = left_out if masked is None else left_out | masked
    order = ranked_items(scores, masked)
    items = order[:, : min(k, scores.shape[1] - 1)]  # without the padding item
    n_open = torch.full((len(order),), scores.shape[1] - 1, device=order.device)
    if masked is not None:
        n_open -= masked[:, 1:].sum(1)
    first = scores.gather(1, items)  # [B, K]
    candidates = Candidates(order, items, first, n_open)
    if leaves_out:
        first = behind_the_others(first, candidates.masked)
    check_finite(first, "retriever's scores", REMEDY)
    among = first.double().log_softmax(dim=1)  # [B, K]
    return replace(candidates, scores=among.float())


def behind_the_others(scores: Tensor, masked: Tensor) -> Tensor:
    """Scores of candidates in which those that do not take part are far below all others.

    Args:
        scores: ``[R, K]``.
        masked: bool ``[R, K]``, candidates that do not take part.

    Returns:
        ``[R, K]``; where no candidate takes part, all are equal.
    """
    lowest = scores.masked_fill(masked, torch.inf).amin(1, keepdim=True)  # [R, 1]
    lowest = lowest.masked_fill(lowest.isinf(), 0.0)
    return torch.where(masked, lowest - BEHIND, scores)


@torch.no_grad()
def top_candidates(
    retriever,
    rows,
    k: int,
    seen: SeenItems | None = None,
    max_scores: int = 2**24,
    unmasked: Tensor | None = None,
) -> Tensor:
    """The first ``k`` items of each row in the retriever's order, without a users x items tensor.

    Args:
        retriever: gives scores by ``full_sort_predict``.
        rows: RecBole ``Interaction`` of any number of rows, with users and histories.
        k: candidates of each row.
        seen: items that stand last, as those of each row's history do; ``None`` masks nothing.
        max_scores: scores that are held at a time; memory does not grow with the rows.
        unmasked: an item of each row that keeps its place although ``seen`` has it, ``[rows]``.

    Returns:
        int64 item ids ``[rows, k]`` on the CPU, as :func:`ranked_items` would begin.
    """
    retriever.eval()
    n_rows = max(1, max_scores // retriever.n_items)
    parts = []
    for start in range(0, len(rows), n_rows):
        batch = rows[start : start + n_rows].to(retriever.device)
        scores = catalogue_scores(retriever.full_sort_predict, batch)  # [B, N]
        last = None
        if seen is not None:
            users, histories = batch[retriever.USER_ID], batch[retriever.ITEM_SEQ]
            last = seen_mask(users, histories, seen, scores.shape[1])
            if unmasked is not None:
                last.scatter_(1, unmasked[start : start + n_rows, None].to(last.device), False)
        parts.append(ranked_items(scores, last, k).cpu())
    return torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int64)


def ranked_items(scores: Tensor, last: Tensor | None = None, k: int | None = None) -> Tensor:
    """The items of each row, best first: the retriever's order.

    Equal scores stand in the order of their ids. Items marked in ``last`` stand behind all others,
    in their own order, and the padding item 0 stands at the very end.

    Args:
        scores: ``[batch, n_items]``.
        last: bool ``[batch, n_items]``, or ``None``.
        k: how many items are wanted; ``None`` is all, the padding item included.

    Returns:
        int64 item ids ``[batch, n_items]`` or ``[batch, k]``.

    Raises:
        NotFiniteError: a score is NaN.
        ValueError: there are more than 2^28 items.
    """
    if scores.shape[1] > 2**28:
        raise ValueError(f"{scores.shape[1]} items cannot be put into order, at most 2^28.")
    if torch.isnan(scores[:, 1:]).any():
        raise NotFiniteError(f"The retriever gives NaN as a score. {REMEDY}")
    n_items = scores.shape[1]
    id_bits = max(1, (n_items - 1).bit_length())
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # integers in the scores' order
    # one integer for each item, from high bits to low: group, minus score, id
    keys = (-rising << id_bits) + torch.arange(n_items, device=scores.device)  # [B, N]
    if last is not None:
        keys += last.long() << (33 + id_bits)
    keys[:, 0] = torch.iinfo(torch.int64).max >> id_bits << id_bits
    if keys.device.type == "cpu":  # NumPy sorts integers several times as fast as torch
        array = keys.numpy()
        if k is not None and k < n_items:
            array = np.partition(array, k, axis=1)[:, :k]
        keys = torch.from_numpy(np.sort(array, axis=1))
    elif k is None:
        keys = keys.sort(dim=1).values
    else:
        keys = keys.topk(min(k, n_items), dim=1, largest=False).values
    return keys & ((1 << id_bits) - 1)


def scores_from_order(order: Tensor) -> Tensor:
    """Scores whose descending order is ``order``, without ties: minus the position.

    Exact in float32 below 16.7 million items.

    Args:
        order: int64 item ids ``[batch, n_items]``, each row a permutation.

    Returns:
        float32 ``[batch, n_items]``, a new contiguous tensor.
    """
    positions = torch.arange(order.shape[1], dtype=torch.float32, device=order.device)
    return torch.empty(order.shape, dtype=torch.float32, device=order.device).scatter_(
        1, order, -positions.expand(order.shape)
    )
