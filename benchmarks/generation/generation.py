"""The verbalizer's rival: the language model writes the ranked titles, and they are read back.

LlamaRec (Yue et al. 2023, arXiv 2311.02089, section 4.4) compares its verbalizer with generating
the ranked list. Here the same model reads the same prompt with another instruction, decodes
greedily, and each line that it writes is matched with a candidate's title.

Shapes: B prompts, K candidates, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from recbole_llamarec.ranking.batching import BatchedRanker
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.written_list import GenerationCounts, parse_ranking, written_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATE_INSTRUCTION = (
    "Given user history in chronological order, rank all items of the candidate pool, the most "
    "likely next item first. Write one title a line, as it stands in the pool, without its index "
    "letter."
)


class GeneratingRanker(BatchedRanker):
    """Ranks candidates by the list of titles that the language model writes, decoded greedily.

    It is used in the place of a :class:`~recbole_llamarec.ranking.ranker.Ranker`.

    Args:
        model: a causal language model, with or without an adapter.
        prompts: builds token ids from item ids; its template's instruction asks for the whole list,
            as :data:`GENERATE_INSTRUCTION` does. Its ``max_prompt_tokens`` must leave room for the
            list where the model has a limit of positions.
        batch_tokens: tokens of one batch, prompts, padding and generated tokens included.

    Attributes:
        counts: what has become of the lists of all calls of :meth:`rank`.
    """

    def __init__(self, model, prompts: PromptBuilder, batch_tokens: int) -> None:
        super().__init__(model, batch_tokens)
        self.prompts = prompts
        self.counts = GenerationCounts()

    @torch.no_grad()
    def rank(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Minus the position of each candidate in the final order.

        Candidates that the list omits follow behind in the order in which they were given.

        Args:
            histories: item ids of each user in chronological order, any length.
            candidates: item ids to rank, equally many (K) for each user.
            show_progress: show a progress bar over prompts.

        Returns:
            float32 ``[users, K]`` on the CPU, in the order of ``candidates``, from 0 for the first
            to 1 - K for the last.
        """
        if not len(histories):
            return torch.zeros(0, 0)
        n_candidates = len(candidates[0])
        encoded = self.prompts.encode_all(histories, candidates)
        titles = [[self.prompts.titles[int(item)] for item in row] for row in candidates]
        budgets = [self.list_tokens(row) for row in titles]
        costs = [len(prompt) + budget for prompt, budget in zip(encoded, budgets, strict=True)]
        result = torch.empty(len(encoded), n_candidates)
        for batch in self.batches(costs, show_progress, "Generate", "prompt"):
            texts = self.write(
                [encoded[i] for i in batch], [budgets[i] for i in batch], n_candidates
            )
            for row, text in zip(batch, texts, strict=True):
                ranking = parse_ranking(text, titles[row])
                self.counts.add(ranking)
                result[row, ranking.complete_order()] = torch.arange(0.0, -n_candidates, -1)
        return result

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
        """Continue each prompt of one batch greedily, as if it stood alone.

        Args:
            prompts: token ids of each prompt.
            max_new_tokens: most tokens that are written behind each prompt.
            n_lines: lines that are not blank after which a text ends, or None: then nothing, not
                even the end-of-text token, ends a text before its ``max_new_tokens``, as is needed
                to measure the time of a given number of tokens.

        Returns:
            The text behind each prompt; at most ``n_lines`` lines, if given.
        """
        tokenizer = self.prompts.tokenizer
        # PEFT puts its layers inside the base model, so the base model's own text has the adapter.
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        ends = _end_tokens(base, tokenizer)
        pad = next((i for i in (tokenizer.pad_token_id, *ends) if i is not None), 0)
        input_ids, attention_mask = pad_left(prompts, pad, self.device)  # [B, T]
        n_prompt_tokens = input_ids.shape[1]
        stops = []
        if n_lines is not None:
            stops = [_ListsWritten(tokenizer, n_prompt_tokens, max_new_tokens, n_lines)]
        self.model.eval()
        with _greedy_config(base, ends, pad, max(max_new_tokens), force=n_lines is None) as config:
            output = base.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=config,
                stopping_criteria=stops,
            )  # [B, T + new]
        texts = []
        for row, most in zip(output[:, n_prompt_tokens:].tolist(), max_new_tokens, strict=True):
            # A row that is done goes on, or is filled up, until the whole batch is done.
            own = list(takewhile(lambda token: token not in ends, row[:most]))
            text = _decode(tokenizer, own)
            texts.append(text if n_lines is None else "\n".join(written_lines(text)[:n_lines]))
        return texts


class _ListsWritten:
    """Tells ``generate`` which rows are done: those with all lines, or with all their tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompt_tokens: int,
        max_new_tokens: Sequence[int],
        n_lines: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.n_prompt_tokens = n_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.n_lines = n_lines

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """``[B]`` bool for ``input_ids`` ``[B, T + new]``."""
        rows = input_ids[:, self.n_prompt_tokens :].tolist()
        done = [
            len(row) >= most or self._has_all_lines(row)
            for row, most in zip(rows, self.max_new_tokens, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)

    def _has_all_lines(self, row: list[int]) -> bool:
        finished, _, _ = _decode(self.tokenizer, row).rpartition("\n")
        return len(written_lines(finished)) >= self.n_lines


def pad_left(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the left, so that all prompts end at one position, and their mask.

    Returns:
        ``input_ids`` and ``attention_mask``, both int64 ``[batch, longest]``; 1 marks a token.
    """
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)  # [B, T]
    attention_mask = torch.zeros_like(input_ids)  # [B, T]
    for ids, mask, prompt in zip(input_ids, attention_mask, prompts, strict=True):
        ids[longest - len(prompt) :] = torch.tensor(prompt)
        mask[longest - len(prompt) :] = 1
    return input_ids.to(device), attention_mask.to(device)


@contextmanager
def _greedy_config(
    model, ends: list[int], pad: int, max_new_tokens: int, force: bool
) -> Iterator[Any]:
    """Greedy decoding and nothing else.

    ``generate`` takes what its argument leaves open from the model's own generation config, which
    may sample, punish repetition or set a ``max_length``; so that one is put aside.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        min_new_tokens=max_new_tokens if force else None,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    own, model.generation_config = model.generation_config, config
    try:
        yield config
    finally:
        model.generation_config = own


def _end_tokens(model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation config."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, (list, tuple)) else [own]
    return sorted({int(i) for i in (*listed, tokenizer.eos_token_id) if i is not None})


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    (text,) = tokenizer.batch_decode(
        [ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
