"""The ranker: history and candidates in, one score for each candidate out, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from recbole_llamarec.ranking.batching import BatchedRanker
from recbole_llamarec.ranking.language_model import final_softcap, last_hidden_of, output_head
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.verbalizer import Verbalizer


class Ranker(BatchedRanker):
    """Ranks candidates for a history with a language model, a prompt and a verbalizer.

    Args:
        model: a causal language model, with or without an adapter.
        prompts: builds token ids from item ids.
        verbalizer: reads one score for each label.
        batch_tokens: tokens of one forward pass, padding included; halved where memory does not
            suffice.
        n_permutations: orders in which the candidates of each user are shown, see :meth:`rank`.

    Attributes:
        label_prior: what :meth:`rank` takes off each label's logit, float32 ``[labels]``, or
            ``None``.
    """

    def __init__(
        self,
        model,
        prompts: PromptBuilder,
        verbalizer: Verbalizer,
        batch_tokens: int,
        n_permutations: int = 1,
    ) -> None:
        super().__init__(model, batch_tokens)
        self.prompts = prompts
        self.verbalizer = verbalizer
        self.n_permutations = n_permutations
        self.label_prior: torch.Tensor | None = None

    def label_logits(self, prompts: Sequence[Sequence[int]], n_candidates: int) -> torch.Tensor:
        """Label logits of one batch, with gradients where they are enabled (paper, section 3.2).

        Only the last position's hidden state meets the head, and only its label rows.

        Args:
            prompts: token ids of each prompt.
            n_candidates: candidates in every prompt, K.

        Returns:
            float32 ``[batch, K]``.
        """
        hidden = last_hidden_of(self.model, prompts)  # [B, H]
        return self.verbalizer.scores(
            hidden, output_head(self.model), n_candidates, final_softcap(self.model)
        )  # [B, K]

    @torch.no_grad()
    def rank(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Log-probability of each candidate to be the next item.

        With several permutations the candidates are shown in as many rotations of their order, so
        that each stands behind labels from the whole range, and log-probabilities are averaged:
        what the model has for or against a label falls out (permutation self-consistency, Tang et
        al. 2023, arXiv 2310.07712).

        Args:
            histories: item ids of each user in chronological order, any length.
            candidates: item ids to rank, equally many (K) for each user.
            show_progress: show a progress bar over users.

        Returns:
            float32 ``[users, K]`` on the CPU, in the order of ``candidates``; every row sums to 1
            in probability.
        """
        if not len(histories):
            return torch.zeros(0, 0)
        n_candidates = len(candidates[0])
        shifts = rotations(n_candidates, self.n_permutations)
        encoded = [
            self.prompts.encode_all(histories, [rotated(pool, shift) for pool in candidates])
            for shift in shifts
        ]
        result = torch.empty(len(histories), n_candidates)
        lengths = [sum(map(len, prompts)) for prompts in zip(*encoded, strict=True)]
        self.model.eval()
        logits_of = partial(self.label_logits, n_candidates=n_candidates)
        for batch in self.batches(lengths, show_progress):
            # a user's prompts stand together, since they have their beginning in common
            prompts = [prompts[i] for i in batch for prompts in encoded]
            logits = self.within_memory(logits_of, prompts).cpu()  # [b * P, K]
            if self.label_prior is not None:
                logits = logits - self.label_prior[:n_candidates]
            scores = logits.log_softmax(-1)
            by_rotation = scores.unflatten(0, (-1, len(shifts))).unbind(1)  # P of [b, K]
            aligned = [s.roll(shift, 1) for s, shift in zip(by_rotation, shifts, strict=True)]
            result[torch.from_numpy(batch)] = torch.stack(aligned).mean(0).log_softmax(-1)
        return result

    def measure_label_prior(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        show_progress: bool = False,
    ) -> torch.Tensor:
        """What the model has for each label, whatever stands behind it.

        Args:
            histories, candidates: as :meth:`rank` takes them; the candidates in random order, so
                that the items behind each label are alike on average.

        Returns:
            mean log-probability of each label, less their mean, float32 ``[K]``.
        """
        kept, n_permutations = self.label_prior, self.n_permutations
        self.label_prior, self.n_permutations = None, 1
        try:
            mean = self.rank(histories, candidates, show_progress).mean(0)  # [K]
        finally:
            self.label_prior, self.n_permutations = kept, n_permutations
        return mean - mean.mean()


def rotations(n_candidates: int, n_permutations: int) -> list[int]:
    """By how many places the candidates are rotated: 0, then evenly over the whole turn."""
    return [turn * n_candidates // n_permutations for turn in range(n_permutations)]


def rotated(candidates: Sequence[int], shift: int) -> list[int]:
    """The candidates with those from place ``shift`` on in front."""
    return [*candidates[shift:], *candidates[:shift]]
