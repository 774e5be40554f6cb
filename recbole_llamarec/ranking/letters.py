"""The paper's ranker: candidates behind index letters, one forward pass, the letters' logits.

LlamaRec, Yue et al. 2023, arXiv 2311.02089, section 3.3.

Shapes: B batch, K candidates, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.model.forward import Forward
from recbole_llamarec.ranking.model.head import (
    logit_scaling,
    max_positions,
    output_head,
    prompt_limit,
)
from recbole_llamarec.ranking.prompt.builder import PromptBuilder
from recbole_llamarec.ranking.protocol import Encoded, Loss, Ranker, RankerParts, ServedParts
from recbole_llamarec.ranking.verbalizer import Verbalizer, default_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NextTokenLoss:
    """Cross-entropy over the vocabulary of the label and of the end token behind it, averaged.

    One pass reads both: the label's logits at the prompt's last token, the end token's at the
    label. Targets that several candidates share count as the most probable one's.
    """

    reads_candidates = True

    def __call__(self, ranker: Letters, batch: Sequence[Encoded], targets: Tensor) -> Tensor:
        end = ranker.prompts.tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "train_loss: next_token tunes on the end token behind the label, and the "
                "tokenizer has none; set train_loss to label."
            )
        labels = [ranker.verbalizer.token_ids[i] for i in targets.argmax(1).tolist()]
        answered = [[*own.context, label] for own, label in zip(batch, labels, strict=True)]
        places = [[[len(tokens) - 2, len(tokens) - 1]] for tokens in answered]
        hidden = ranker.forward.hidden_at(answered, [[[]]] * len(answered), places)  # [2 B, H]
        logits = ranker.scaling(output_head(ranker.model)(hidden).float())  # [2 B, V]
        expected = torch.tensor([(label, end) for label in labels], device=logits.device)  # [B, 2]
        losses = cross_entropy(logits, expected.flatten(), reduction="none")  # [2 B]
        return losses.view(-1, 2).mean(1)  # [B]


def prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[str],
    settings: Any,
    limit: int | None,
) -> PromptBuilder:
    """The prompts that show history and candidates; arguments as :func:`prompts_and_verbalizer`."""
    return PromptBuilder(
        tokenizer,
        texts,
        labels,
        settings.prompt,
        max_history=settings.prompt_max_history,
        max_title_tokens=settings.prompt_max_title_tokens,
        max_prompt_tokens=limit,
    )


def prompts_and_verbalizer(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], settings: Any, limit: int | None
) -> tuple[PromptBuilder, Verbalizer]:
    """The prompts of letters, and their labels as they follow a prompt.

    Args:
        tokenizer: the language model's.
        texts: text of each item id; the first is the padding item's.
        settings: the run's, see :class:`RankerSettings`.
        limit: most tokens of a prompt; ``None`` is no limit.

    Raises:
        ValueError: a label is no single token behind the prompt, or there are too few titles.
    """
    labels = settings.verbalizer_labels or default_labels(settings.rerank_candidates)
    prompts = prompts_of(tokenizer, texts, labels, settings, limit)
    some_items = items_to_try(prompts, settings)
    verbalizer = Verbalizer.for_tokenizer(
        tokenizer, labels, prompts.text(some_items, some_items), settings.prompt.response
    )
    return prompts, verbalizer


def items_to_try(prompts: PromptBuilder, settings: Any) -> range:
    """Candidates of a prompt to try something out with: as many as the run shows."""
    n_items = len(prompts.titles) - 1
    return range(1, min(len(prompts.labels), settings.rerank_candidates, n_items) + 1)


class Letters:
    """Ranks candidates by the logits of their labels behind one prompt that shows them all.

    Args:
        model: a causal language model, with or without an adapter.
        forward: computes its hidden states.
        prompts: builds token ids from item ids.
        verbalizer: reads one score for each label.

    Raises:
        ValueError: the model's logits are not understood, see :func:`logit_scaling`.
    """

    reads_labels = True  # so that candidates are at most as many as labels
    losses: ClassVar[Mapping[str, Loss]] = {"label": LabelLoss(), "next_token": NextTokenLoss()}

    def __init__(
        self, model: nn.Module, forward: Forward, prompts: PromptBuilder, verbalizer: Verbalizer
    ) -> None:
        self.model = model
        self.forward = forward
        self.prompts = prompts
        self.verbalizer = verbalizer
        self.scaling = logit_scaling(model)

    @classmethod
    def build(cls, parts: RankerParts) -> Letters:
        """Make the ranker, see :meth:`Ranker.build`.

        Raises:
            ValueError: a label is no single token behind the prompt, there are too few titles, or
                ``prompt_max_tokens`` is more than the model takes.
        """
        wanted = parts.settings.prompt_max_tokens
        # The label stands behind the prompt where it is tuned on.
        n_behind = int(wanted is None or parts.settings.train_loss == "next_token")
        limit = prompt_limit(wanted, max_positions(parts.model), n_behind)
        read = prompts_and_verbalizer(parts.tokenizer, parts.texts, parts.settings, limit)
        return cls(parts.model, parts.forward, *read)

    @classmethod
    def served(cls, parts: ServedParts) -> Ranker:
        """Make the same ranker of a language model on a server, for ``llm_backend: http``.

        Raises:
            ServerError: the server does not answer.
            ValueError: it does not give what is needed; or this class has scores of its own, which
                a server does not compute.
        """
        from recbole_llamarec.ranking.served.letters import ServedLetters

        if cls.scores is not Letters.scores:
            raise ValueError(
                f"llm_backend: http: {cls.__name__} has scores of its own, and a server gives "
                "those of Letters alone; set llm_backend to local, or override served too."
            )
        # It has all that is asked of a ranker but a ``build`` from weights.
        return cast("Ranker", ServedLetters.build(parts, cls.losses))

    @property
    def max_candidates(self) -> int:
        """As many candidates as there are labels."""
        return len(self.verbalizer.labels)

    @property
    def shares_beginnings(self) -> bool:
        """Whether prompts of one pass compute a common beginning once."""
        return self.forward.shares_beginnings

    def encode(self, history: Sequence[int], items: Sequence[int]) -> Encoded:
        """Token ids of one prompt, see :meth:`Ranker.encode`; items are distinct."""
        context, n_history = self.prompts.encode_shown(history, items)
        (n_tokens,) = self.forward.cost([context], [[[]]])
        return Encoded(context, [], len(items), n_history, n_tokens)

    def scores(self, batch: Sequence[Encoded]) -> Tensor:
        """Label logits, float32 ``[B, K]`` (paper, section 3.2); see :meth:`Ranker.scores`.

        Only the last position's hidden state meets the head, and only its label rows.
        """
        contexts = [own.context for own in batch]
        places = [[[len(context) - 1]] for context in contexts]
        hidden = self.forward.hidden_at(contexts, [[[]]] * len(contexts), places)  # [B, H]
        return self.verbalizer.scores(
            hidden, output_head(self.model), batch[0].n_candidates, self.scaling
        )  # [B, K]
