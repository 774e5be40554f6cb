"""One optimizer step of the adapter, cut into passes that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from recbole_llamarec import distributed
from recbole_llamarec.ranking.model.batching import TokenBudget, is_out_of_memory
from recbole_llamarec.ranking.protocol import Encoded, Loss, Ranker


def optimizer_step(
    ranker: Ranker,
    encoded: Sequence[Encoded],
    targets: np.ndarray,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    budget: TokenBudget,
    clip_norm: float | None = None,
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
        clip_norm: largest norm of the gradient; ``None`` does not clip.
        on_progress: is told the number of samples of each pass.

    Returns:
        the mean loss of the batch in nats.

    Raises:
        ValueError: the loss is not finite.
        torch.OutOfMemoryError: one sample alone is too much.
    """
    ranker.model.train()
    device = next(ranker.model.parameters()).device
    share = getattr(ranker, "shares_beginnings", False)
    while True:
        optimizer.zero_grad(set_to_none=True)
        total, largest = 0.0, 0
        try:
            for places in budget.batches(encoded, share):
                part = [encoded[i] for i in places]
                largest = sum(own.n_tokens for own in part)
                wanted = torch.from_numpy(targets[places]).to(device)  # [b, K]
                mean = loss(ranker, part, wanted).sum() / len(encoded)
                if not torch.isfinite(mean):
                    raise ValueError(
                        f"The ranker's training loss is {mean.item()}; lower learning_rate, or set "
                        "llm_dtype to float32 or bfloat16."
                    )
                mean.backward()
                total += mean.item()
            break
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            budget.cut(largest)
    on_progress(len(encoded))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    distributed.average_gradients([w.grad for w in weights if w.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    return total
