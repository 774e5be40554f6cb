"""Ranking by likelihood: how probable each candidate's title is as the next one of the history.

The verbalizer asks a language model to point at a candidate by its letter, which a small model
first has to learn, from one answer a prompt. A list of titles is plain text, on the other hand, and
each of its titles is an answer to learn from (as in language models as recommenders: Zhang et al.
2021; P5: Geng et al. 2022, arXiv 2203.13366). Nothing is generated
either: all candidates are read in one forward pass behind the history, which they share, and since
none sees the others, the order in which they are given is no matter.

Some titles are probable anywhere, as common words or short ones are. What counts is how much the
history raises a title's probability, so that a share of its log-probability without any history is
subtracted (surface form competition: Holtzman et al. 2021, arXiv 2104.08315).

Shapes: K candidates, P tokens whose probability is read, V tokens that titles are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from recbole_llamarec.ranking.batching import BatchedRanker
from recbole_llamarec.ranking.language_model import (
    final_softcap,
    head_logits,
    hidden_at,
    output_head,
)
from recbole_llamarec.ranking.title_list import TitleList

EncodedPool = tuple[list[int], list[list[int]]]  # token ids of a context and of what may follow it


class LikelihoodRanker(BatchedRanker):
    """Ranks candidates by the probability of their titles behind the history's.

    It is used in the place of a :class:`~recbole_llamarec.ranking.ranker.Ranker`. Probabilities are
    among the tokens that titles are made of; titles that are added later bring theirs with them.

    Args:
        model: a causal language model, with or without an adapter.
        prompts: builds token ids from item ids.
        batch_tokens: tokens of one forward pass, what is shared counted once; halved where memory
            does not suffice.
        temperature: what log-likelihoods are divided by to become scores.
        prior_share: the share of each title's prior that is subtracted before.
    """

    def __init__(
        self,
        model,
        prompts: TitleList,
        batch_tokens: int,
        temperature: float = 1.0,
        prior_share: float = 0.0,
    ) -> None:
        super().__init__(model, batch_tokens)
        self.prompts = prompts
        self.temperature = temperature
        self.prior_share = prior_share
        self._priors: dict[tuple[int, ...], float] = {}
        self._priors_among = prompts.token_ids

    def log_likelihoods(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Log-probability of each continuation behind its context, with gradients where enabled.

        Args:
            contexts: token ids, at least one each; equal ones are computed once where the model
                packs its prompts.
            continuations: token ids of titles, at least one each.

        Returns:
            in nats, float32 ``[len(contexts)]``.
        """
        pairs = list(zip(contexts, continuations, strict=True))
        # the token at a place is read off the state of the one before it
        places = [range(len(a) - 1, len(a) + len(b) - 1) for a, b in pairs]
        hidden = hidden_at(self.model, [[*a, *b[:-1]] for a, b in pairs], places)  # [P, H]
        known = torch.tensor(self.prompts.token_ids, device=hidden.device)  # [V]
        expected = torch.tensor([token for _, b in pairs for token in b], device=hidden.device)
        logits = head_logits(
            hidden, output_head(self.model), known, final_softcap(self.model)
        )  # [P, V]
        found = logits.log_softmax(-1).gather(1, torch.searchsorted(known, expected)[:, None])
        parts = found.squeeze(1).split([len(b) for _, b in pairs])
        return torch.stack([part.sum() for part in parts])

    @torch.no_grad()
    def priors(self, titles: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probability of each title behind the heading alone, by the model without its adapter.

        Each is computed once, for as long as the titles are made of the same tokens.

        Args:
            titles: token ids, at least one each.

        Returns:
            in nats, float32 ``[len(titles)]``.
        """
        if self._priors_among is not self.prompts.token_ids:
            self._priors, self._priors_among = {}, self.prompts.token_ids
        keys = [tuple(title) for title in titles]
        missing = [key for key in dict.fromkeys(keys) if key not in self._priors]
        if missing:
            heading, _ = self.prompts.encode([], [])
            is_training = self.model.training
            with getattr(self.model, "disable_adapter", nullcontext)():
                self.model.eval()
                lengths = [len(heading) + len(title) for title in missing]
                for batch in self.batches(lengths, show_progress=False):
                    own = [missing[i] for i in batch]
                    found = self.within_memory(
                        lambda part: self.log_likelihoods([heading] * len(part), part), own
                    )
                    self._priors |= dict(zip(own, found.tolist(), strict=True))
                self.model.train(is_training)
        return torch.tensor([self._priors[key] for key in keys], device=self.device)

    def candidate_scores(self, encoded: Sequence[EncodedPool]) -> torch.Tensor:
        """Scores of the candidates of each user, with gradients where they are enabled.

        Args:
            encoded: what :meth:`TitleList.encode` gives for each user; K candidates each.

        Returns:
            float32 ``[users, K]``; their softmax is the probability to be the next item.
        """
        contexts = [context for context, titles in encoded for _ in titles]
        titles = [title for _, row in encoded for title in row]
        found = self.log_likelihoods(contexts, titles)
        if self.prior_share:
            found = found - self.prior_share * self.priors(titles)
        return (found / self.temperature).view(len(encoded), -1)

    @torch.no_grad()
    def rank(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Log-probability of each candidate to be the next item, among the candidates.

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
        shortened_before = self.prompts.n_shortened
        encoded = [
            self.prompts.encode(history, [[item] for item in pool])
            for history, pool in zip(histories, candidates, strict=True)
        ]
        self.prompts.report_shortened(since=shortened_before)
        result = torch.empty(len(encoded), len(candidates[0]))
        lengths = [len(context) + sum(map(len, titles)) for context, titles in encoded]
        self.model.eval()
        if self.prior_share:  # of all at once: in fuller batches
            self.priors([title for _, titles in encoded for title in titles])
        for batch in self.batches(lengths, show_progress):
            found = self.within_memory(self.candidate_scores, [encoded[i] for i in batch])  # [b, K]
            result[torch.from_numpy(batch)] = found.log_softmax(-1).cpu()
        return result
