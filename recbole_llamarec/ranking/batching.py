"""Batches of prompts of similar length, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


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
