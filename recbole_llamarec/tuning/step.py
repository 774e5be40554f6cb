"""One optimizer step of the adapter, cut into passes that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp import GradScaler

from recbole_llamarec import distributed
from recbole_llamarec.finite import NotFiniteError
from recbole_llamarec.ranking.model.adapter import base_model
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.protocol import Encoded, Loss, Ranker

logger = logging.getLogger(__name__)


def loss_scaler(model: nn.Module) -> GradScaler:
    """What keeps gradients from vanishing in float16 (Micikevicius et al. 2018, 1710.03740).

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        torch's scaler, which does nothing where the model computes in another precision.
    """
    own: Any = base_model(model)
    weight = next(own.parameters(), None)
    if weight is None:  # a server has the weights
        return GradScaler(enabled=False)
    dtype = getattr(own, "dtype", weight.dtype)  # of transformers, which knows quantised weights
    return GradScaler(weight.device.type, enabled=dtype == torch.float16)


def optimizer_step(
    ranker: Ranker,
    encoded: Sequence[Encoded],
    targets: np.ndarray,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    budget: TokenBudget,
    clipping: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], object] = lambda n: None,
    scaler: GradScaler | None = None,
) -> float:
    """One optimizer step on one batch, cut into passes whose gradients add up.

    Of several processes each has a share of the batch; losses and gradients are those of the whole.

    Where memory runs out, the budget is cut and the step begins anew, since a backward pass may
    have added a part of its gradients.

    Args:
        ranker: its model is tuned.
        encoded: prompts of the batch, B, or of this process's share.
        targets: how likely each candidate is to be, float32 ``[B, K]``.
        loss: of each sample.
        optimizer: over the adapter's weights.
        budget: tokens of one forward and backward pass.
        clipping: arguments of torch's ``clip_grad_norm_``; ``None`` does not clip.
        on_progress: is told the number of samples of each pass.
        scaler: of the loss; a step whose gradients overflow is left out, and its scale is halved.

    Returns:
        the mean loss of the batch in nats.

    Raises:
        NotFiniteError: the loss is not finite, or gradients are not at any scale of it.
        torch.OutOfMemoryError: one sample alone is too much.
    """
    ranker.model.train()
    share = getattr(ranker, "shares_beginnings", False)
    scaler = scaler or GradScaler(enabled=False)
    device = next(ranker.model.parameters()).device
    n = distributed.mean_over_processes(len(encoded), device)
    backward = partial(
        _backward, ranker, encoded, targets, loss, optimizer, budget, share, scaler, n
    )
    while (own := backward()) is None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the passes that follow have other sizes
    on_progress(len(encoded))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    distributed.average_gradients([w.grad for w in weights if w.grad is not None])
    scaler.unscale_(optimizer)
    if clipping:
        nn.utils.clip_grad_norm_(weights, **clipping)
    scaler.step(optimizer)
    _adapt(scaler)
    return distributed.mean_over_processes(own, device)


def _adapt(scaler: GradScaler) -> None:
    """Halve the loss's scale after an overflow, which is logged; double it after many steps."""
    before = scaler.get_scale()
    scaler.update()
    if (scale := scaler.get_scale()) >= before:
        return
    if scale < 1:
        raise NotFiniteError(
            "The gradients of the adapter are not finite in float16, however small the loss's "
            "scale; lower learning_rate, or set llm_dtype to float32 or bfloat16."
        )
    logger.info(
        "Gradients overflowed in float16: a step is left out; the loss's scale is %g.", scale
    )


def _backward(
    ranker: Ranker,
    encoded: Sequence[Encoded],
    targets: np.ndarray,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    budget: TokenBudget,
    share: bool,
    scaler: GradScaler,
    n: float,
) -> float | None:
    """Put the gradients of the summed loss, divided by n, into the weights.

    Returns that loss, or ``None`` where the budget was cut.

    It returns before the next attempt, so that the tensors of the pass that failed are free.
    """
    optimizer.zero_grad(set_to_none=True)
    device = next(ranker.model.parameters()).device
    total = 0.0
    for places in budget.batches(encoded, share):
        part = [encoded[i] for i in places]
        wanted = torch.from_numpy(targets[places]).to(device)  # [b, K]
        try:
            mean = loss(ranker, part, wanted).sum() / n
            if not torch.isfinite(mean):
                raise NotFiniteError(
                    f"The ranker's training loss is {mean.item()}; lower learning_rate, or set "
                    "llm_dtype to float32 or bfloat16."
                )
            scaler.scale(mean).backward()
        except RuntimeError as error:
            budget.give_way(error, part, share, unit="sample")
            return None
        total += mean.item()
    return total
