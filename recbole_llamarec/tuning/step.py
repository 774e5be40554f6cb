"""One optimizer step of the adapter, cut into passes that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recbole_llamarec import distributed
from recbole_llamarec.finite import NotFiniteError
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.protocol import Encoded, Loss, Ranker


def optimizer_step(
    ranker: Ranker,
    encoded: Sequence[Encoded],
    targets: np.ndarray,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    budget: TokenBudget,
    clipping: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], object] = lambda n: None,
) -> float:
    """One optimizer step on one batch, cut into passes whose gradients add up.

    Where memory runs out, the budget is cut and the step begins anew, since a backward pass may
    have added a part of its gradients.

    Args:
        ranker: its model is tuned.
        encoded: prompts of the batch, B.
        targets: how likely each candidate is to be, float32 ``[B, K]``.
        loss: of each sample.
        optimizer: over the adapter's weights.
        budget: tokens of one forward and backward pass.
        clipping: arguments of torch's ``clip_grad_norm_``; ``None`` does not clip.
        on_progress: is told the number of samples of each pass.

    Returns:
        the mean loss of the batch in nats.

    Raises:
        NotFiniteError: the loss is not finite.
        torch.OutOfMemoryError: one sample alone is too much.
    """
    ranker.model.train()
    share = getattr(ranker, "shares_beginnings", False)
    while (total := _backward(ranker, encoded, targets, loss, optimizer, budget, share)) is None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the passes that follow have other sizes
    on_progress(len(encoded))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    distributed.average_gradients([w.grad for w in weights if w.grad is not None])
    if clipping:
        torch.nn.utils.clip_grad_norm_(weights, **clipping)
    optimizer.step()
    return total


def _backward(
    ranker: Ranker,
    encoded: Sequence[Encoded],
    targets: np.ndarray,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    budget: TokenBudget,
    share: bool,
) -> float | None:
    """Put the gradients of the mean loss into the weights; ``None`` where the budget was cut.

    It returns before the next attempt, so that the tensors of the pass that failed are free.
    """
    optimizer.zero_grad(set_to_none=True)
    device = next(ranker.model.parameters()).device
    total = 0.0
    for places in budget.batches(encoded, share):
        part = [encoded[i] for i in places]
        wanted = torch.from_numpy(targets[places]).to(device)  # [b, K]
        try:
            mean = loss(ranker, part, wanted).sum() / len(encoded)
            if not torch.isfinite(mean):
                raise NotFiniteError(
                    f"The ranker's training loss is {mean.item()}; lower learning_rate, or set "
                    "llm_dtype to float32 or bfloat16."
                )
            mean.backward()
        except RuntimeError as error:
            budget.give_way(error, part, share, unit="sample")
            return None
        total += mean.item()
    return total
