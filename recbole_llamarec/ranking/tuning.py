"""Tuning of the adapter on the label alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from recbole_llamarec.ranking.batching import length_batches
from recbole_llamarec.ranking.ranker import Ranker


def tuning_step(
    ranker: Ranker,
    histories: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    labels: Sequence[int],
    optimizer: torch.optim.Optimizer,
    batch_tokens: int,
    clip_norm: float | None = None,
    reduce_gradients: Callable[[list[torch.Tensor]], None] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> float:
    """One optimizer step on one batch of samples (paper, section 3.2: loss on the label alone).

    The loss is the cross-entropy of the target's label among the candidates' labels. The batch is
    cut into micro-batches of similar length, whose gradients add up to those of the whole.

    Args:
        histories, candidates: item ids of each sample; K candidates each.
        labels: the target's position among the candidates, of each sample.
        optimizer: over the adapter's weights.
        batch_tokens: tokens of one forward pass, padding included.
        clip_norm: largest norm of the gradient; ``None`` does not clip.
        reduce_gradients: averages gradients over processes, in place.
        on_progress: is told the number of samples of each micro-batch that is done.

    Returns:
        the mean loss of the batch in nats.
    """
    ranker.model.train()
    optimizer.zero_grad(set_to_none=True)
    encoded = [ranker.prompts.encode(h, c) for h, c in zip(histories, candidates, strict=True)]
    total = 0.0
    for rows in length_batches([len(prompt) for prompt in encoded], batch_tokens):
        logits = ranker.label_logits([encoded[i] for i in rows], len(candidates[0]))  # [b, K]
        targets = torch.tensor([labels[i] for i in rows], device=logits.device)  # [b]
        loss = cross_entropy(logits, targets, reduction="sum") / len(encoded)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The ranker's training loss is {loss.item()}; lower learning_rate, or set "
                "llm_dtype to float32 or bfloat16."
            )
        loss.backward()
        total += loss.item()
        if on_progress is not None:
            on_progress(len(rows))
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    if reduce_gradients is not None:
        reduce_gradients([p.grad for p in weights if p.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    return total
