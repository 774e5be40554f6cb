"""Ranking by a read-out: a score behind each candidate's title, in one pass that shows them all.

The verbalizer's answer is a letter at the prompt's end: a model has to compare all candidates there
and to bind its choice to a letter, before it can learn anything from users. Here each candidate has
a place of its own, so that one prompt teaches as many states as it has candidates. The score is how
much likelier the model finds "yes" than "no" there, as in monoT5 for single documents (Nogueira et
al. 2020, arXiv 2003.06713); there are no weights beside the adapter's. A candidate sees the history
and the candidates before it.

Shapes: B batch, K candidates, P = B * K places, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.letters import prompts_of
from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.model.forward import Forward
from recbole_llamarec.ranking.model.head import (
    head_logits,
    logit_scaling,
    max_positions,
    output_head,
    prompt_limit,
)
from recbole_llamarec.ranking.prompt.builder import PromptBuilder
from recbole_llamarec.ranking.protocol import Encoded, Loss, RankerParts
from recbole_llamarec.ranking.verbalizer import default_labels

ANSWERS = (" yes", " no")


class Readout:
    """Ranks candidates by what the model answers behind each one's title.

    Args:
        model: a causal language model, with or without an adapter.
        forward: computes its hidden states.
        prompts: builds token ids from item ids.
        answers: token ids of "yes" and "no".

    Raises:
        ValueError: the model's logits are not understood, see :func:`logit_scaling`.
    """

    losses: ClassVar[Mapping[str, Loss]] = {"label": LabelLoss()}

    def __init__(
        self, model: nn.Module, forward: Forward, prompts: PromptBuilder, answers: tuple[int, int]
    ) -> None:
        self.model = model
        self.forward = forward
        self.prompts = prompts
        self.answers = answers
        self.scaling = logit_scaling(model)

    @classmethod
    def build(cls, parts: RankerParts) -> Readout:
        """Make the ranker, see :meth:`Ranker.build`.

        Raises:
            ValueError: the tokenizer does not tell "yes" from "no", or ``prompt_max_tokens`` is
                more than the model takes.
        """
        settings = parts.settings
        n_candidates = max(2, settings.rerank_candidates)
        if "{label}" in settings.prompt.candidate_item:
            labels = settings.verbalizer_labels or default_labels(n_candidates)
        else:  # they are not shown, and only count the candidates
            labels = tuple(map(str, range(n_candidates)))
        limit = prompt_limit(settings.prompt_max_tokens, max_positions(parts.model))
        prompts = prompts_of(parts.tokenizer, parts.texts, labels, settings, limit)
        answers = parts.tokenizer(list(ANSWERS), add_special_tokens=False).input_ids
        yes, no = (own[-1] for own in answers)
        if yes == no:
            raise ValueError(
                "ranking_method: readout compares 'yes' and 'no', and the tokenizer ends both with "
                f"the token {yes}; set ranking_method to verbalizer or likelihood."
            )
        return cls(parts.model, parts.forward, prompts, (yes, no))

    @property
    def max_candidates(self) -> int:
        """As many candidates as there are labels; where none is shown, as the run has."""
        return len(self.prompts.labels)

    @property
    def shares_beginnings(self) -> bool:
        """Whether prompts of one pass compute a common beginning once."""
        return self.forward.shares_beginnings

    def encode(self, history: Sequence[int], items: Sequence[int]) -> Encoded:
        """Token ids of one prompt, see :meth:`Ranker.encode`; items are distinct."""
        context, n_history = self.prompts.encode_shown(history, items)
        places = self.prompts.places_behind(history[len(history) - n_history :], items)
        (n_tokens,) = self.forward.cost([context], [[[]]])
        return Encoded(context, [], len(items), n_history, n_tokens, places=places)

    def scores(self, batch: Sequence[Encoded]) -> Tensor:
        """Log-odds of yes, float32 ``[B, K]``; see :meth:`Ranker.scores`."""
        contexts, places = [own.context for own in batch], [[own.places] for own in batch]
        hidden = self.forward.hidden_at(contexts, [[[]]] * len(batch), places)  # [P, H]
        tokens = torch.tensor(self.answers, device=hidden.device)
        logits = head_logits(hidden, output_head(self.model), tokens, self.scaling)  # [P, 2]
        yes, no = logits.unbind(1)  # [P]
        return (yes - no).view(len(batch), -1)  # [B, K]
