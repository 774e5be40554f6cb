"""Tuning of the adapter, on the label alone or by another loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy, softplus

from recbole_llamarec.ranking.language_model import (
    final_softcap,
    last_hidden_of,
    output_head,
    prompt_batches,
)
from recbole_llamarec.ranking.ranker import Ranker

Prompts = Sequence[Sequence[int]]


def label_loss(
    ranker: Ranker, prompts: Prompts, targets: torch.Tensor, n_candidates: int
) -> torch.Tensor:
    """Cross-entropy of the target's label among the candidates' labels (paper, section 3.2).

    With one target this is also ListNet's top-one loss (Cao et al. 2007).

    Args:
        ranker: its model's gradients are enabled.
        prompts: token ids of each prompt.
        targets: place of the target among the candidates, int64 ``[batch]``.
        n_candidates: candidates of each prompt, K.

    Returns:
        the loss of each sample in nats, float32 ``[batch]``; so do the other losses.
    """
    return cross_entropy(ranker.label_logits(prompts, n_candidates), targets, reduction="none")


def ranknet_loss(
    ranker: Ranker, prompts: Prompts, targets: torch.Tensor, n_candidates: int
) -> torch.Tensor:
    """Logistic loss of the target's label logit against each other one, averaged (RankNet).

    Burges et al. 2005; on the first token's logits as in FIRST (Reddy et al. 2024).
    """
    logits = ranker.label_logits(prompts, n_candidates)  # [B, K]
    margins = logits - logits.gather(1, targets[:, None])  # [B, K]; 0 at the target
    at_target = softplus(margins.new_zeros(()))
    return (softplus(margins).sum(1) - at_target) / (n_candidates - 1)


def next_token_loss(
    ranker: Ranker, prompts: Prompts, targets: torch.Tensor, n_candidates: int
) -> torch.Tensor:
    """Cross-entropy over the vocabulary of the label and of the end token behind it, averaged."""
    label_ids = torch.tensor(ranker.verbalizer.token_ids)[targets.cpu()].tolist()
    answered = [[*prompt, label] for prompt, label in zip(prompts, label_ids, strict=True)]
    hidden = last_hidden_of(ranker.model, [*prompts, *answered])  # [2 B, H]
    logits = output_head(ranker.model)(hidden).float()  # [2 B, V]
    if (cap := final_softcap(ranker.model)) is not None:
        logits = cap * torch.tanh(logits / cap)
    end = ranker.prompts.tokenizer.eos_token_id
    expected = torch.tensor(label_ids + [end] * len(prompts), device=logits.device)
    return cross_entropy(logits, expected, reduction="none").view(2, -1).mean(0)


LOSSES = {"label": label_loss, "ranknet": ranknet_loss, "next_token": next_token_loss}


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
    loss: str = "label",
) -> float:
    """One optimizer step on one batch of samples.

    The batch is cut into micro-batches of similar length, whose gradients add up to those of the
    whole.

    Args:
        histories, candidates: item ids of each sample; K candidates each.
        labels: the target's position among the candidates, of each sample.
        optimizer: over the adapter's weights.
        batch_tokens: tokens of one forward pass, padding included.
        clip_norm: largest norm of the gradient; ``None`` does not clip.
        reduce_gradients: averages gradients over processes, in place.
        on_progress: is told the number of samples of each micro-batch that is done.
        loss: a name in :data:`LOSSES`.

    Returns:
        the mean loss of the batch in nats.
    """
    losses_of = LOSSES[loss]
    ranker.model.train()
    optimizer.zero_grad(set_to_none=True)
    encoded = [ranker.prompts.encode(h, c) for h, c in zip(histories, candidates, strict=True)]
    total = 0.0
    for rows in prompt_batches(ranker.model, encoded, batch_tokens):
        targets = torch.tensor([labels[i] for i in rows], device=ranker.device)  # [b]
        losses = losses_of(ranker, [encoded[i] for i in rows], targets, len(candidates[0]))  # [b]
        share = losses.sum() / len(encoded)
        if not torch.isfinite(share):
            raise ValueError(
                f"The ranker's training loss is {share.item()}; lower learning_rate, or set "
                "llm_dtype to float32 or bfloat16."
            )
        share.backward()
        total += share.item()
        if on_progress is not None:
            on_progress(len(rows))
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    if reduce_gradients is not None:
        reduce_gradients([p.grad for p in weights if p.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    return total
