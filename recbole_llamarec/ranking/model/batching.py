"""Batches of prompts within a budget of tokens, which is cut where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recbole_llamarec.ranking.model.packing import MIN_SHARED, common_beginning

if TYPE_CHECKING:
    from recbole_llamarec.ranking.protocol import Encoded

_NO_MEMORY = (  # of torch's errors, the last one where cuBLAS or cuDNN has no room to work in
    *("out of memory", "can't allocate memory", "not enough memory"),
    "status_alloc_failed",
)

logger = logging.getLogger(__name__)


class TokenBudget:
    """How many tokens one pass may have; cut for good where that is too much for the memory.

    Args:
        tokens: most tokens of one pass.
        key: the YAML key that sets them, for the log.

    Attributes:
        tokens: most tokens of one pass from now on.
    """

    def __init__(self, tokens: int, key: str) -> None:
        self.tokens = tokens
        self.key = key

    def batches(self, encoded: Sequence[Encoded], share: bool = False) -> list[np.ndarray]:
        """Group prompts into passes within the budget.

        Args:
            encoded: the prompts.
            share: whether prompts of one pass compute common beginnings once
                (``Forward.shares_beginnings``), so that those are brought together.

        Returns:
            Indices of each pass, int64; together they are a permutation of all prompts. Without
            ``share`` the longest come first.
        """
        if share:
            return shared_batches([one.tokens for one in encoded], self.tokens)
        contexts = [one.n_context for one in encoded]
        return length_batches([one.n_tokens for one in encoded], self.tokens, contexts)

    def cut(self, n_tokens: int) -> None:
        """Halve the budget below a pass that did not fit.

        Args:
            n_tokens: tokens of that pass.
        """
        self.tokens = max(1, min(self.tokens, n_tokens // 2))
        logger.warning(
            "Memory ran out in a pass of %d tokens: %s is %d from now on.",
            *(n_tokens, self.key, self.tokens),
        )

    def give_way(
        self, error: RuntimeError, failed: Sequence[Encoded], share: bool, unit: str = "prompt"
    ) -> None:
        """Cut the budget after a pass for which the memory did not suffice.

        Args:
            error: what the pass raised.
            failed: its prompts.
            share: as :meth:`batches` takes it.
            unit: what the message calls one of them.

        Raises:
            RuntimeError: ``error`` itself, where it is not one of memory.
            torch.OutOfMemoryError: the pass had one prompt, and cannot be cut.
        """
        if not is_out_of_memory(error):
            raise error
        if len(failed) == 1:
            raise torch.OutOfMemoryError(
                f"{self.key}: one {unit} of {failed[0].n_tokens} tokens does not fit into the "
                "memory. Show less in a prompt (prompt_max_history, prompt_max_title_tokens, "
                "rerank_candidates), or take a smaller model or llm_load_in_4bit."
            ) from error
        self.cut(pass_tokens(failed, share))

    def run(
        self,
        encoded: Sequence[Encoded],
        compute: Callable[[np.ndarray], Tensor],
        share: bool = False,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Compute all prompts, pass by pass.

        Where memory runs out, the budget is cut, and what is left is grouped anew.

        Args:
            encoded: the prompts.
            compute: is given the indices of a pass, and must leave nothing behind when it fails.
            share: as :meth:`batches` takes it.

        Yields:
            The indices of each pass, int64, and what was computed of it.

        Raises:
            torch.OutOfMemoryError: one prompt alone is too much.
        """
        left = self.batches(encoded, share)
        while left:
            rows = left.pop(0)
            result = self._computed(encoded, compute, rows, share)
            if result is not None:
                yield rows, result
                continue
            rest = np.concatenate([rows, *left])
            parts = self.batches([encoded[row] for row in rest], share)
            left = [rest[part] for part in parts]

    def _computed(
        self,
        encoded: Sequence[Encoded],
        compute: Callable[[np.ndarray], Tensor],
        rows: np.ndarray,
        share: bool,
    ) -> Tensor | None:
        """What was computed of a pass; None where memory ran out, its tensors being free again."""
        try:
            return compute(rows)
        except RuntimeError as error:
            self.give_way(error, [encoded[row] for row in rows], share)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what is left is cut into other sizes
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell torch's errors of a device's memory, or of the CPU's, from all others."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error).lower() for words in _NO_MEMORY
    )


def length_batches(
    lengths: Sequence[int], max_tokens: int, contexts: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Group prompts so that little padding is computed; the longest come first.

    A batch of ``n`` prompts costs ``n`` times its longest prompt, or ``n`` times its longest
    context and what is longest behind one; it is closed before that exceeds ``max_tokens``. A
    prompt longer than the budget makes a batch of its own.

    Args:
        lengths: tokens of each prompt.
        max_tokens: tokens of a padded batch.
        contexts: tokens of each prompt that are padded by themselves; None is 0.

    Returns:
        list of int64 index arrays; together they are a permutation of all prompts. The order
        depends on the lengths alone, so equal input gives equal batches.
    """
    totals = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-totals, kind="stable")
    first = np.zeros_like(totals) if contexts is None else np.asarray(contexts, dtype=np.int64)
    batches, start = [], 0
    while start < len(order):
        most = max(1, max_tokens // max(1, int(totals[order[start]])))
        rows = order[start : start + most]
        widths = np.maximum.accumulate(first[rows]) + np.maximum.accumulate((totals - first)[rows])
        fitting = int((widths * np.arange(1, len(rows) + 1) <= max_tokens).sum())
        batches.append(rows[: max(1, fitting)])
        start += len(batches[-1])
    return batches


def shared_batches(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[np.ndarray]:
    """Group prompts so that those with a common beginning meet in a pass, within a budget.

    Args:
        prompts: token ids of each prompt.
        max_tokens: tokens of a pass, where what neighbours have in common counts once (the pass
            may be longer by less than ``MIN_SHARED``); a longer prompt makes a pass of its own.

    Returns:
        list of int64 index arrays; together they are a permutation of all prompts.
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    batches: list[list[int]] = []
    used = 0
    for row in order:
        if batches:
            added = _n_added(prompts[batches[-1][-1]], prompts[row])
            if used + added <= max_tokens:
                batches[-1].append(row)
                used += added
                continue
        batches.append([row])
        used = len(prompts[row])
    return [np.array(batch, dtype=np.int64) for batch in batches]


def _n_added(before: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens by which a prompt lengthens a pass behind its neighbour."""
    shared = common_beginning(before, prompt)
    return len(prompt) - (shared if shared >= MIN_SHARED else 0)


def pass_tokens(encoded: Sequence[Encoded], share: bool) -> int:
    """Tokens of a pass, as :meth:`TokenBudget.batches` counts them."""
    if not share:
        longest = max(one.n_context for one in encoded)
        return len(encoded) * (longest + max(one.n_tokens - one.n_context for one in encoded))
    prompts = [one.tokens for one in encoded]
    neighbours = zip(prompts, prompts[1:], strict=False)
    return len(prompts[0]) + sum(_n_added(before, prompt) for before, prompt in neighbours)


def pad_right(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Pad token ids on the right with token 0.

    A causal model's real positions cannot see what follows them, so no mask is needed and any
    token will do.

    Args:
        prompts: token ids, at least one prompt.
        device: where the tensors go.

    Returns:
        ``input_ids`` ``[batch, longest]``, int64.
    """
    longest = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)  # [B, T]
    for row, prompt in zip(input_ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return input_ids.to(device)


def whole_prompts(
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    places: Sequence[Sequence[Sequence[int]]],
) -> tuple[list[list[int]], list[np.ndarray]]:
    """Join each context with its continuations; return the places of each prompt, int64, too."""
    prompts = [
        [*context, *continuation]
        for context, group in zip(contexts, continuations, strict=True)
        for continuation in group
    ]
    read = [np.asarray(at, dtype=np.int64) for of_context in places for at in of_context]
    if len(read) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, but places for {len(read)}.")
    return prompts, read
