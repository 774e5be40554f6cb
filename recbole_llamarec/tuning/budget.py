"""How many tokens a pass of tuning may have, by what autograd keeps of each until it goes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from recbole_llamarec.ranking.model.adapter import base_model
from recbole_llamarec.ranking.model.batching import TokenBudget

AUTO = "auto"
CPU_TOKENS = 1024  # small passes are the faster ones there
SHARE = 0.8  # of the free memory; the rest is for gradients and what is kept of no token
PROBE_TOKENS = 64

logger = logging.getLogger(__name__)


def tuning_budget(setting: int | str, model: nn.Module) -> TokenBudget:
    """Tokens of one forward and backward pass.

    Args:
        setting: the value of ``train_batch_tokens``.
        model: the loaded causal language model with its adapter; on a GPU it is tried out.
    """
    weight = next(model.parameters(), torch.empty(0))  # a server has the weights
    if setting != AUTO:
        tokens = int(setting)
    elif (free := free_memory(weight.device)) is None:
        tokens = CPU_TOKENS
    else:
        tokens = tokens_within(free, bytes_of_a_token(model))
        logger.info("train_batch_tokens: auto: %d, by the memory that is free.", tokens)
    return TokenBudget(tokens, "train_batch_tokens")


def tokens_within(n_bytes: int, bytes_of_token: float) -> int:
    """How many tokens a pass may have, at least one, in so much free memory."""
    return max(1, int(SHARE * n_bytes / bytes_of_token))


def free_memory(device: torch.device) -> int | None:
    """Bytes of a GPU that tensors may still take, what torch holds for them included.

    Returns:
        None on another device, whose memory is not looked at.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + held


def bytes_of_a_token(model: nn.Module) -> float:
    """Bytes that autograd keeps of each token of a prompt, for the gradients of the adapter.

    Args:
        model: causal language model with an adapter.
    """
    base: Any = base_model(model)
    weights = [*base.parameters(), *base.buffers()]
    input_ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=weights[0].device)
    was_training = base.training
    base.train()
    try:
        with torch.enable_grad(), counting_saved_bytes(weights) as kept:
            states = base.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        del states
    finally:
        base.train(was_training)
    return sum(kept.values()) / PROBE_TOKENS


@contextmanager
def counting_saved_bytes(weights: list[Tensor]) -> Iterator[dict[StorageWeakRef, int]]:
    """Within, what autograd keeps is counted, each memory once.

    Args:
        weights: which are there anyway, and are not counted.

    Yields:
        Bytes of each memory that is kept, which grows.
    """
    own = {StorageWeakRef(weight.untyped_storage()) for weight in weights}
    kept: dict[StorageWeakRef, int] = {}

    def count(tensor: Tensor) -> Tensor:
        memory = StorageWeakRef(tensor.untyped_storage())
        if memory not in own:
            kept[memory] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        yield kept
