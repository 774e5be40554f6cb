"""Greedy decoding of a batch of prompts, each as if it stood alone.

Shapes: B prompts, T tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from generation.written_list import written_lines
from recbole_llamarec.ranking.model.adapter import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def continued(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    n_lines: int | None,
) -> list[str]:
    """Continue each prompt of one batch greedily.

    Args:
        model: a causal language model, plain or wrapped by PEFT; in evaluation mode afterwards.
        tokenizer: the model's.
        prompts: token ids of each prompt, B.
        max_new_tokens: most tokens that are written behind each prompt, B.
        n_lines: lines that are not blank after which a text ends, or ``None``: then nothing, not
            even the end-of-text token, ends a text before its ``max_new_tokens``, as is needed to
            measure the time of a given number of tokens.

    Returns:
        The text behind each prompt; at most ``n_lines`` lines, if given.
    """
    # PEFT puts its layers inside the base model, so the base model's own text has the adapter.
    base: Any = base_model(model)
    ends = _end_tokens(base, tokenizer)
    pad = next((i for i in (tokenizer.pad_token_id, *ends) if i is not None), 0)
    input_ids, attention_mask = pad_left(prompts, pad, next(base.parameters()).device)  # [B, T]
    n_prompt_tokens = input_ids.shape[1]
    stops = []
    if n_lines is not None:
        stops = [_ListsWritten(tokenizer, n_prompt_tokens, max_new_tokens, n_lines)]
    model.eval()
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
        text = _decode(tokenizer, list(takewhile(lambda token: token not in ends, row[:most])))
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

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
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
) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left, so that all prompts end at one position, and their mask.

    Returns:
        ``input_ids`` and ``attention_mask``, both int64 ``[B, T]``; 1 marks a token.
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
    model: Any, ends: list[int], pad: int, max_new_tokens: int, force: bool
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
    previous, model.generation_config = model.generation_config, config
    try:
        yield config
    finally:
        model.generation_config = previous


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation config."""
    of_model = model.generation_config.eos_token_id
    listed = of_model if isinstance(of_model, (list, tuple)) else [of_model]
    return sorted({int(i) for i in (*listed, tokenizer.eos_token_id) if i is not None})


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    (text,) = tokenizer.batch_decode(
        [ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
