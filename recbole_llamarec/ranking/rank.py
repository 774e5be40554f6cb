"""Ranking of many users: a ranker's scores, batch by batch, as log-probabilities.

Shapes: K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_llamarec.finite import NotFiniteError, RowError
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.protocol import Encoded, Ranker

REMEDY = (
    "Set llm_dtype to float32 or bfloat16, or, where the adapter has been tuned, lower "
    "learning_rate and tune again."
)


class BatchLog(Protocol):
    """What an interrupted pass has computed, batch by batch, so that it can go on."""

    def next(self) -> Tensor | None:
        """The next batch as it was given to :meth:`add`; ``None`` when there is no further one."""
        ...

    def add(self, scores: Tensor) -> None:
        """Keep a batch's log-probabilities, float32 ``[batch, K]`` on the CPU."""
        ...


@torch.no_grad()
def rank_all(
    ranker: Ranker,
    histories: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    budget: TokenBudget,
    show_progress: bool = False,
    log: BatchLog | None = None,
) -> Tensor:
    """Log-probability of each candidate to be the next item, among the candidates.

    Batches are cut before anything is computed, the longest prompts first. A pass that takes up an
    interrupted one through its log therefore computes the same batches, and the same bits on a CPU.

    Args:
        ranker: its model is in evaluation mode within, and afterwards as it was.
        histories: item ids of each user in chronological order, any length.
        candidates: item ids to rank, equally many (K) for each user.
        budget: tokens of one pass; cut where memory runs out.
        show_progress: show a progress bar over users.
        log: takes each batch when it is computed, and gives those of an interrupted pass.

    Returns:
        float32 ``[users, K]`` on the CPU, in the order of ``candidates``; every row sums to 1 in
        probability.

    Raises:
        NotFiniteError: a score is not finite.
        RowError: the ranker cannot score a row.
        ValueError: the users have different numbers of candidates, or the log is of another pass.
    """
    if not len(histories):
        return torch.zeros(0, 0)
    encoded = _encoded(ranker, histories, candidates)
    n_candidates = encoded[0].n_candidates
    order = np.concatenate(budget.batches(encoded))  # [users]
    result = torch.empty(len(encoded), n_candidates)
    n_done = _taken_up(log, result, order)
    left = order[n_done:]

    def compute(rows: np.ndarray) -> Tensor:
        try:
            scores = ranker.scores([encoded[row] for row in left[rows]]).float().cpu()  # [b, K]
        except RowError as error:
            if error.row is None:
                raise
            row = int(left[rows][error.row])  # error.row is one of this batch
            raise type(error)(f"Row {row}: {error}", row) from error
        if not (finite := scores.isfinite().all(1)).all():
            row = int(left[rows][int(finite.int().argmin())])
            raise NotFiniteError(
                f"The ranker's scores of row {row} are not finite: {scores[~finite][0].tolist()}. "
                f"{REMEDY}",
                row,
            )
        return scores.log_softmax(-1)

    is_training = ranker.model.training
    ranker.model.eval()
    options = {"desc": "Rank", "unit": "user", "ncols": 100, "disable": not show_progress}
    try:
        with tqdm(total=len(encoded), initial=n_done, **options) as progress:
            for rows, scores in budget.run([encoded[row] for row in left], compute):
                result[torch.from_numpy(left[rows])] = scores
                if log is not None:
                    log.add(scores)
                progress.update(len(rows))
    finally:
        ranker.model.train(is_training)
    return result


def _encoded(
    ranker: Ranker, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
) -> list[Encoded]:
    """Encode all users; warn once of the prompts that were shortened."""
    counts = sorted({len(items) for items in candidates})
    if len(counts) > 1:
        raise ValueError(
            f"The users have from {counts[0]} to {counts[-1]} candidates; rank equally many for "
            "each (rerank_candidates)."
        )
    if ranker.max_candidates is not None and counts[0] > ranker.max_candidates:
        raise ValueError(
            f"rerank_candidates: {counts[0]} candidates are more than the ranker takes, "
            f"{ranker.max_candidates}; rank fewer, or give more verbalizer_labels where these are "
            "the limit."
        )
    shortened_before = 0 if ranker.prompts is None else ranker.prompts.n_shortened
    encoded = [ranker.encode(*row) for row in zip(histories, candidates, strict=True)]
    if ranker.prompts is not None:
        ranker.prompts.report_shortened(since=shortened_before)
    return encoded


def _taken_up(log: BatchLog | None, result: Tensor, order: np.ndarray) -> int:
    """Fill in what a log has of an interrupted pass; return how many users that is."""
    n_done = 0
    while log is not None and n_done < len(order) and (scores := log.next()) is not None:
        rows = order[n_done : n_done + len(scores)]
        if scores.shape != (len(rows), result.shape[1]):
            raise ValueError(
                f"The scores kept of an interrupted pass are of another one: {len(order)} users "
                f"with {result.shape[1]} candidates are to be ranked, and a batch of shape "
                f"{list(scores.shape)} was kept behind {n_done} users. Start without the state of "
                "the interrupted run."
            )
        result[torch.from_numpy(rows)] = scores
        n_done += len(scores)
    return n_done
