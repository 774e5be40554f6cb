"""Ranking by likelihood: how probable each candidate's title is as the next one of the history.

The verbalizer asks a language model to point at a candidate by its letter, which a small model
first has to learn, from one answer a prompt. A list of titles is plain text, on the other hand, and
each of its titles is an answer to learn from (as in language models as recommenders: Zhang et al.
2021; P5: Geng et al. 2022, arXiv 2203.13366). Nothing is generated either: all candidates are read
in one forward pass behind the history, which they share. None sees the others, so that the order in
which they are given does not change their scores.

Some titles are probable anywhere, as common words or short ones are. What counts is how much the
history raises a title's probability, so that a share of its log-probability without any history is
subtracted (surface form competition: Holtzman et al. 2021, arXiv 2104.08315).

Shapes: B batch, K candidates, P tokens whose probability is read, V tokens that titles are made of,
H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.model.forward import Forward
from recbole_llamarec.ranking.model.head import (
    TokenHead,
    logit_scaling,
    max_positions,
    prompt_limit,
)
from recbole_llamarec.ranking.prompt.title_list import TitleList
from recbole_llamarec.ranking.protocol import Encoded, Loss, RankerParts

GPU_TITLES = 64  # titles of one pass in which their priors are computed on a GPU
Titles = Sequence[Sequence[int]]  # token ids of each title


class TitlesLoss:
    """Mean negative log-likelihood of a title, over the shown history's titles and the target's.

    Every title of the history is to be likely behind those before it, so that one sample teaches as
    many answers as it has titles. Probabilities are among the tokens that titles are made of.
    """

    reads_candidates = False

    def __call__(self, ranker: Likelihood, batch: Sequence[Encoded], targets: Tensor) -> Tensor:
        texts = [own.tokens for own in batch]
        start = len(ranker.prompts.start)
        places = [[range(start - 1, len(text) - 1)] for text in texts]
        parts = ranker.log_probabilities(
            [text[:-1] for text in texts],
            [[[]]] * len(texts),
            places,
            [text[start:] for text in texts],
        )  # B of [tokens]
        n_titles = torch.tensor([own.n_history + 1 for own in batch], device=parts[0].device)
        return -torch.stack([part.sum() for part in parts]) / n_titles  # [B]


class Likelihood:
    """Ranks candidates by the probability of their titles behind the history's.

    Probabilities are among the tokens that titles are made of; titles that are added later bring
    theirs with them.

    Args:
        model: a causal language model, with or without an adapter.
        forward: computes its hidden states.
        prompts: builds token ids from item ids.
        temperature: what log-likelihoods are divided by to become scores.
        prior_share: the share of each title's prior that is subtracted before.

    Raises:
        ValueError: the model's logits are not understood, see :func:`logit_scaling`.
    """

    shows_template = False  # its prompts are titles behind likelihood_heading
    max_candidates = None
    losses: ClassVar[Mapping[str, Loss]] = {"label": LabelLoss(), "titles": TitlesLoss()}

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        prompts: TitleList,
        temperature: float = 1.0,
        prior_share: float = 0.0,
    ) -> None:
        self.model = model
        self.forward = forward
        self.prompts = prompts
        self.temperature = temperature
        self.prior_share = prior_share
        self.scaling = logit_scaling(model)
        self._head: TokenHead | None = None
        self._head_tokens: list[int] | None = None
        self._head_device: torch.device | None = None
        self._priors: dict[tuple[int, ...], float] = {}
        self._priors_among = prompts.token_ids

    @classmethod
    def build(cls, parts: RankerParts) -> Likelihood:
        """Make the ranker, see :meth:`Ranker.build`.

        Raises:
            ValueError: ``prompt_max_tokens`` is more than the model takes.
        """
        settings = parts.settings
        prompts = TitleList(
            parts.tokenizer,
            parts.texts,
            settings.likelihood_heading,
            max_history=settings.prompt_max_history,
            max_title_tokens=settings.prompt_max_title_tokens,
            max_tokens=prompt_limit(settings.prompt_max_tokens, max_positions(parts.model)),
        )
        return cls(
            *(parts.model, parts.forward, prompts),
            temperature=settings.likelihood_temperature,
            prior_share=settings.likelihood_prior,
        )

    @property
    def shares_beginnings(self) -> bool:
        """Whether prompts of one pass compute a common beginning once."""
        return self.forward.shares_beginnings

    def encode(self, history: Sequence[int], items: Sequence[int]) -> Encoded:
        """Token ids of a history and of each candidate's title, see :meth:`Ranker.encode`."""
        context, titles, n_history = self.prompts.encode(history, items)
        (n_tokens,) = self.forward.cost([context], [[title[:-1] for title in titles]])
        n_context = len(context) if self.forward.pads_contexts_apart else 0
        return Encoded(context, titles, len(titles), n_history, n_tokens, n_context=n_context)

    def scores(self, batch: Sequence[Encoded]) -> Tensor:
        """Scores of the candidates, float32 ``[B, K]``; see :meth:`Ranker.scores`."""
        likelihoods = self.log_likelihoods(
            [own.context for own in batch], [own.continuations for own in batch]
        )  # [B * K]
        if self.prior_share:
            titles = [title for own in batch for title in own.continuations]
            likelihoods = likelihoods - self.prior_share * self.priors(titles)
        return (likelihoods / self.temperature).view(len(batch), -1)

    def log_likelihoods(self, contexts: Titles, titles: Sequence[Titles]) -> Tensor:
        """Log-probability of titles behind their context, with gradients where enabled.

        Args:
            contexts: token ids, at least one each.
            titles: token ids of each context's titles, at least one each.

        Returns:
            in nats, float32, one for each title, in their order.
        """
        # The token at a place is read off the state of the one before it.
        places = [
            [range(len(context) - 1, len(context) + len(title) - 1) for title in own]
            for context, own in zip(contexts, titles, strict=True)
        ]
        read = [[title[:-1] for title in own] for own in titles]
        flat = [title for own in titles for title in own]
        parts = self.log_probabilities(contexts, read, places, flat)
        return torch.stack([part.sum() for part in parts])

    def log_probabilities(
        self,
        contexts: Titles,
        continuations: Sequence[Titles],
        places: Sequence[Sequence[Sequence[int]]],
        expected: Titles,
    ) -> tuple[Tensor, ...]:
        """Log-probability of each expected token, among the tokens that titles are made of.

        Args:
            contexts, continuations, places: as ``Forward.hidden_at`` takes them; P places.
            expected: the tokens to come behind the places of each continuation, P together.

        Returns:
            in nats, float32, as many as ``expected`` has tokens, for each continuation.
        """
        hidden = self.forward.hidden_at(contexts, continuations, places)  # [P, H]
        head = self._title_head(hidden.device)
        tokens = torch.tensor([token for own in expected for token in own], device=hidden.device)
        columns = torch.searchsorted(head.token_ids, tokens)[:, None]  # [P, 1]
        chosen = head(hidden).log_softmax(-1).gather(1, columns).squeeze(1)  # [P]
        return chosen.split([len(own) for own in expected])

    @torch.no_grad()
    def priors(self, titles: Titles) -> Tensor:
        """Log-probability of each title behind the heading alone, by the model without its adapter.

        Each is computed once, for as long as the titles are made of the same tokens.

        Args:
            titles: token ids, at least one each.

        Returns:
            in nats, float32 ``[len(titles)]``, on the model's device.
        """
        if self._priors_among is not self.prompts.token_ids:
            self._priors, self._priors_among = {}, self.prompts.token_ids
        keys = [tuple(title) for title in titles]
        missing = [key for key in dict.fromkeys(keys) if key not in self._priors]
        device = next(self.model.parameters()).device
        if missing:
            # On a CPU each title alone: its prior then has the same bits whichever other titles are
            # missing, so that an interrupted run ends as one that was not.
            size = 1 if device.type == "cpu" else GPU_TITLES
            is_training = self.model.training
            self.model.eval()
            try:
                with getattr(self.model, "disable_adapter", nullcontext)():
                    for start in range(0, len(missing), size):
                        part = missing[start : start + size]
                        computed = self.log_likelihoods([self.prompts.start], [part])
                        self._priors |= dict(zip(part, computed.tolist(), strict=True))
            finally:  # memory may run out, and the caller goes on with smaller batches
                self.model.train(is_training)
        return torch.tensor([self._priors[key] for key in keys], device=device)

    def _title_head(self, device: torch.device) -> TokenHead:
        """The output head for the tokens of titles; gathered anew where these have changed."""
        token_ids = self.prompts.token_ids
        if self._head is None or self._head_tokens is not token_ids or self._head_device != device:
            with torch.inference_mode(False):  # gradients flow through it later
                self._head = TokenHead(self.model, token_ids, self.scaling)
            self._head_tokens, self._head_device = token_ids, device
        return self._head
