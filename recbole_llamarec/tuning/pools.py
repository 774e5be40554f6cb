"""Candidate pools that the ranker is tuned on: a target among negatives."""

from __future__ import annotations

import numpy as np


def blocks_of_positions(runs: np.ndarray, n_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut runs of training rows, which follow each other in time, into blocks from the end.

    Args:
        runs: run of each row, ``[rows]``; the rows of a run are a user's choices one behind the
            other, and stand together, the earliest first.
        n_positions: rows of a block; a run's first block may have fewer.

    Returns:
        the block of each row, numbered from 0 in the order of rows, and how many rows of the block
        come after it; int64 ``[rows]`` both.
    """
    n_rows = len(runs)
    if not n_rows:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    is_last = np.append(runs[1:] != runs[:-1], True)
    last_rows = np.flatnonzero(is_last)
    own_last = last_rows[np.searchsorted(last_rows, np.arange(n_rows))]
    until_end = own_last - np.arange(n_rows)
    later = until_end % n_positions
    blocks = np.cumsum(np.append(True, (later[1:] >= later[:-1]) | is_last[:-1])) - 1
    return blocks, later


def retriever_pool(
    target: int,
    ranked: np.ndarray,
    n_candidates: int,
    depth: int,
    generator: np.random.Generator,
    key: str = "rerank_candidates",
) -> np.ndarray:
    """A target among negatives that the retriever ranks high, shuffled.

    Negatives are uniform over the retriever's first ``depth`` items. The retriever has been trained
    on the target, so that the target's own rank says nothing and is not used.

    Args:
        target: the item that the user chose.
        ranked: the retriever's first items, best first, without those that the user has seen.
        n_candidates: candidates, K.
        depth: how far down the negatives come from.
        generator: of the negatives and the order.
        key: the YAML key that sets ``n_candidates``, for messages.

    Returns:
        candidates ``[n_candidates]``.

    Raises:
        ValueError: fewer items than negatives.
    """
    others = ranked[ranked != target][:depth]
    if len(others) < n_candidates - 1:
        raise ValueError(
            f"{key}: {n_candidates} candidates need {n_candidates - 1} negatives, but "
            f"the retriever gives {len(others)}; raise train_candidates_from."
        )
    negatives = generator.choice(others, size=n_candidates - 1, replace=False)
    return generator.permutation(np.append(negatives, target))


def random_pool(
    target: int,
    seen: np.ndarray,
    n_items: int,
    n_candidates: int,
    generator: np.random.Generator,
    counts: np.ndarray | None = None,
    key: str = "rerank_candidates",
) -> np.ndarray:
    """A target among random negatives, shuffled (paper, section 4.1).

    Negatives come from the catalogue without the padding item, the items seen by the user and the
    target; none repeats.

    Args:
        target: the item that the user chose.
        seen: item ids that are no negatives.
        n_items: of the catalogue, the padding item included.
        n_candidates: candidates, K.
        generator: of the negatives and the order.
        counts: ``[n_items]``, how often each item is chosen. Negatives are drawn one after the
            other in proportion to one more than that; ``None`` draws them uniformly.
        key: the YAML key that sets ``n_candidates``, for messages.

    Returns:
        candidates ``[n_candidates]``.

    Raises:
        ValueError: fewer unseen items than negatives.
    """
    excluded = np.zeros(n_items, dtype=bool)
    excluded[0] = True
    excluded[seen] = True
    excluded[target] = True
    unseen = np.flatnonzero(~excluded)
    if len(unseen) < n_candidates - 1:
        raise ValueError(
            f"{key}: {n_candidates} candidates need {n_candidates - 1} items that the "
            f"user has not seen, but only {len(unseen)} are left; lower {key}."
        )
    weights = None
    if counts is not None:
        weights = counts[unseen] + 1.0
        weights /= weights.sum()
    size = n_candidates - 1
    negatives = generator.choice(unseen, size=size, replace=False, p=weights, shuffle=False)
    return generator.permutation(np.append(negatives, target))
