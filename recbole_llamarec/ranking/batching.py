"""Batches of prompts of similar length, within a budget of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

_logger = logging.getLogger(__name__)


class BatchedRanker:
    """What rankers have in common: a language model, and a budget of tokens for each pass.

    It is no ``nn.Module``, so that a recommender that holds one does not save the language model
    with its own weights.

    Args:
        model: a causal language model, with or without an adapter.
        batch_tokens: tokens of one pass; halved where memory does not suffice.
    """

    def __init__(self, model, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def batches(
        self, lengths: Sequence[int], show_progress: bool, desc: str = "Rank", unit: str = "user"
    ) -> Iterator[np.ndarray]:
        """The batches of :func:`length_batches`, with a progress bar over what is done."""
        options = {"desc": desc, "unit": unit, "ncols": 100, "disable": not show_progress}
        with tqdm(total=len(lengths), **options) as progress:
            for batch in length_batches(lengths, self.batch_tokens):
                yield batch
                progress.update(len(batch))

    def within_memory(self, compute: Callable[[list], torch.Tensor], prompts: list) -> torch.Tensor:
        """What is computed of a batch, in halves where the device has too little memory.

        Args:
            compute: gives one row for each prompt.
            prompts: at least one.

        Raises:
            torch.OutOfMemoryError: one prompt alone is too much.
        """
        try:
            return compute(prompts)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        self.batch_tokens //= 2
        _logger.warning("Out of memory: llm_batch_tokens is %d from now on.", self.batch_tokens)
        half = len(prompts) // 2
        parts = prompts[:half], prompts[half:]
        return torch.cat([self.within_memory(compute, part) for part in parts])


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[np.ndarray]:
    """Group prompts so that little padding is computed; the longest come first.

    A batch of ``n`` prompts costs ``n`` times its longest prompt; it is closed before that exceeds
    ``max_tokens``. A prompt longer than the budget makes a batch of its own.

    Args:
        lengths: tokens of each prompt.
        max_tokens: tokens of a padded batch.

    Returns:
        list of int64 index arrays; together they are a permutation of all prompts. The order
        depends on the lengths alone, so equal input gives equal batches.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, max_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def pad_right(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, and their lengths.

    The padding is token 0: a causal model's real positions cannot see what follows them, so no
    mask is needed and any token will do.

    Returns:
        ``input_ids`` ``[batch, longest]`` and ``lengths`` ``[batch]``, both int64.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    input_ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)  # [B, T]
    for row, prompt in zip(input_ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return input_ids.to(device), lengths.to(device)
