"""A ranker that lets the language model write the ranked titles, which are read back.

LlamaRec (Yue et al. 2023, arXiv 2311.02089, section 4.4) compares its verbalizer with generating
the ranked list. Here the same model reads the same prompt with another instruction, decodes
greedily, and each line that it writes is matched with a candidate's title.

Shapes: B prompts, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from generation.decoding import continued
from generation.written_list import GenerationCounts, parse_ranking
from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.model.head import max_positions
from recbole_llamarec.ranking.prompt.builder import PromptBuilder
from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.protocol import Encoded, RankerParts
from recbole_llamarec.ranking.verbalizer import default_labels

INSTRUCTION = (
    "Given user history in chronological order, rank all items of the candidate pool, the most "
    "likely next item first. Write one title a line, as it stands in the pool, without its index "
    "letter."
)
WORDING = PromptTemplate(  # shows an instruction, and letters that the list is to leave out
    text="### Instruction: {instruction}\n\n"
    "### Input: User history: {history}; Candidate pool: {candidates}\n\n### Response:",
    history_item="({number}) {title}",
    candidate_item="({label}) {title}",
    separator=" ",
    response=" {label}",
)


@dataclass(frozen=True)
class EncodedList(Encoded):
    """A prompt, and what its list may become; ``n_tokens`` counts both.

    Attributes:
        titles: of each candidate as it is shown, K.
        max_new_tokens: tokens of all titles, each with its line break: the most that is written.
    """

    titles: list[str]
    max_new_tokens: int


class Generating:
    """Ranks candidates by the list of titles that the language model writes, decoded greedily.

    The order has no gradient, so that the ranker is not tuned (``epochs: 0``).

    Args:
        model: a causal language model, with or without an adapter.
        prompts: builds token ids from item ids; its template's instruction asks for the whole list,
            as :data:`INSTRUCTION` does. Its ``max_prompt_tokens`` must leave room for the list
            where the model has a limit of positions.

    Attributes:
        counts: what has become of the lists of all calls of :meth:`scores`.
    """

    losses = {"label": LabelLoss()}
    reads_labels = True  # so that candidates are at most as many as labels

    def __init__(self, model: nn.Module, prompts: PromptBuilder) -> None:
        self.model = model
        self.prompts = prompts
        self.counts = GenerationCounts()

    @classmethod
    def build(cls, parts: RankerParts) -> Generating:
        """Make the ranker, see ``Ranker.build``; the run's instruction is replaced.

        Its wording must show one, as :data:`WORDING` does.
        """
        settings = parts.settings
        labels = settings.verbalizer_labels or default_labels(settings.rerank_candidates)
        limit = settings.prompt_max_tokens
        if limit is None and (positions := max_positions(parts.model)) is not None:
            longest_list = settings.rerank_candidates * (settings.prompt_max_title_tokens + 1)
            limit = positions - longest_list
        prompts = PromptBuilder(
            parts.tokenizer,
            parts.texts,
            labels,
            replace(settings.prompt, instruction=INSTRUCTION),
            max_history=settings.prompt_max_history,
            max_title_tokens=settings.prompt_max_title_tokens,
            max_prompt_tokens=limit,
        )
        return cls(parts.model, prompts)

    @property
    def max_candidates(self) -> int:
        """As many candidates as there are labels in the prompt."""
        return len(self.prompts.labels)

    def encode(self, history: Sequence[int], items: Sequence[int]) -> EncodedList:
        """Token ids of one prompt, see ``Ranker.encode``; items are distinct."""
        context, n_history = self.prompts.encode_shown(history, items)
        titles = [self.prompts.titles[int(item)] for item in items]
        n_new = self.list_tokens(titles)
        n_tokens = len(context) + n_new
        return EncodedList(context, [], len(titles), n_history, n_tokens, titles, n_new)

    @torch.no_grad()
    def scores(self, batch: Sequence[EncodedList]) -> Tensor:
        """Minus the position of each candidate in the written order, see ``Ranker.scores``.

        Candidates that the list omits follow behind in the order in which they were given.

        Returns:
            float32 ``[B, K]``, from 0 for the first to 1 - K for the last; no gradients.
        """
        n_candidates = batch[0].n_candidates
        texts = self.write(
            [one.context for one in batch], [one.max_new_tokens for one in batch], n_candidates
        )
        result = torch.empty(len(batch), n_candidates)
        for row, one, text in zip(result, batch, texts, strict=True):
            ranking = parse_ranking(text, one.titles)
            self.counts.add(ranking)
            row[ranking.complete_order()] = torch.arange(0.0, -n_candidates, -1)
        return result.to(next(self.model.parameters()).device)

    def list_tokens(self, titles: Sequence[str]) -> int:
        """Tokens of a list of these titles, each with its line break: the most that is written."""
        text = "".join(f"{title}\n" for title in titles)
        return len(self.prompts.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        n_lines: int | None,
    ) -> list[str]:
        """What the model writes behind each prompt, see :func:`generation.decoding.continued`."""
        return continued(self.model, self.prompts.tokenizer, prompts, max_new_tokens, n_lines)
