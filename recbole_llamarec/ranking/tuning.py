"""Tuning of the adapter: on the label alone, by another loss of the labels, or on likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from recbole_llamarec.ranking.language_model import (
    final_softcap,
    last_hidden_of,
    output_head,
    prompt_batches,
)
from recbole_llamarec.ranking.likelihood import LikelihoodRanker
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


def learning_rate_factor(schedule: str, step: int, n_steps: int) -> float:
    """What the learning rate is multiplied by at a step.

    Args:
        schedule: ``constant``, or ``cosine``: a rise over the first 3 % of the steps, then half a
            cosine down to 0 (Loshchilov and Hutter 2017, without restarts).
        step: from 1 to ``n_steps``.
    """
    if schedule == "constant":
        return 1.0
    rise = max(1, round(0.03 * n_steps))
    if step <= rise:
        return step / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, n_steps - rise)))


def tuning_step(
    ranker: Ranker,
    histories: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    labels: Sequence[int],
    optimizer: torch.optim.Optimizer,
    batch_tokens: int,
    loss: str = "label",
    **options,
) -> float:
    """One optimizer step on one batch of samples of a ranker by labels.

    Args:
        histories, candidates: item ids of each sample; K candidates each.
        labels: the target's position among the candidates, of each sample.
        loss: a name in :data:`LOSSES`.
        ranker, optimizer, batch_tokens, options: as :func:`optimizer_step` takes them.

    Returns:
        the mean loss of the batch in nats.
    """
    prompts = [ranker.prompts.encode(h, c) for h, c in zip(histories, candidates, strict=True)]

    def losses_of(rows: np.ndarray) -> torch.Tensor:
        targets = torch.tensor([labels[i] for i in rows], device=ranker.device)  # [b]
        return LOSSES[loss](ranker, [prompts[i] for i in rows], targets, len(candidates[0]))  # [b]

    return optimizer_step(ranker.model, prompts, losses_of, optimizer, batch_tokens, **options)


def sequence_step(
    ranker: LikelihoodRanker,
    sequences: Sequence[Sequence[int]],
    optimizer: torch.optim.Optimizer,
    batch_tokens: int,
    **options,
) -> float:
    """One optimizer step on one batch of histories: each title is to be likely as the next one.

    Args:
        sequences: item ids in chronological order, at least one each.
        ranker, optimizer, batch_tokens, options: as :func:`optimizer_step` takes them.

    Returns:
        the mean loss of the batch in nats a title, among the tokens that titles are made of.
    """
    encoded = [ranker.prompts.encode([], [sequence]) for sequence in sequences]
    starts = [start for start, _ in encoded]
    lists = [row for _, (row,) in encoded]
    sizes = torch.tensor([len(sequence) for sequence in sequences], device=ranker.device)

    def losses_of(rows: np.ndarray) -> torch.Tensor:
        own = [lists[i] for i in rows]
        likelihoods = ranker.log_likelihoods([starts[i] for i in rows], own)  # [b]
        return -likelihoods / sizes[torch.from_numpy(rows).to(sizes.device)]

    prompts = [start + row for start, row in zip(starts, lists, strict=True)]
    return optimizer_step(ranker.model, prompts, losses_of, optimizer, batch_tokens, **options)


def choice_step(
    ranker: LikelihoodRanker,
    histories: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    targets: np.ndarray,
    optimizer: torch.optim.Optimizer,
    batch_tokens: int,
    **options,
) -> float:
    """One optimizer step on one batch of samples: each candidate is to be as likely as it should.

    Args:
        targets: how likely each candidate is to be, ``[batch, K]``; every row sums to 1.
        ranker, histories, candidates, optimizer, batch_tokens, options: as :func:`tuning_step`
            takes them.

    Returns:
        the mean cross-entropy of the batch in nats.
    """
    encoded = [
        ranker.prompts.encode(history, [[item] for item in pool])
        for history, pool in zip(histories, candidates, strict=True)
    ]

    def losses_of(rows: np.ndarray) -> torch.Tensor:
        scores = ranker.candidate_scores([encoded[i] for i in rows])  # [b, K]
        wanted = torch.from_numpy(targets[rows]).to(scores)  # [b, K]
        return cross_entropy(scores, wanted, reduction="none")  # [b]

    prompts = [[*context, *chain(*titles)] for context, titles in encoded]
    return optimizer_step(ranker.model, prompts, losses_of, optimizer, batch_tokens, **options)


def optimizer_step(
    model: nn.Module,
    prompts: Prompts,
    losses_of: Callable[[np.ndarray], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batch_tokens: int,
    clip_norm: float | None = None,
    reduce_gradients: Callable[[list[torch.Tensor]], None] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> float:
    """One optimizer step on one batch, cut into micro-batches whose gradients add up.

    Args:
        model: the language model that is tuned.
        prompts: token ids of each sample.
        losses_of: loss of each of some samples in nats, ``[b]`` for their places ``[b]``.
        optimizer: over the adapter's weights.
        batch_tokens: tokens of one forward and backward pass.
        clip_norm: largest norm of the gradient; ``None`` does not clip.
        reduce_gradients: averages gradients over processes, in place.
        on_progress: is told the number of samples of each micro-batch that is done.

    Returns:
        the mean loss of the batch in nats.

    Raises:
        ValueError: the loss is not finite.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for rows in prompt_batches(model, prompts, batch_tokens):
        share = losses_of(rows).sum() / len(prompts)
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
