"""Reading the labels' log-probabilities out of an answer of ``/v1/completions``.

Two forms are in use. ``logprobs.top_logprobs`` is a list of mappings from tokens to
log-probabilities (OpenAI, vLLM, SGLang); vLLM can name a token by its id, ``token_id:330``.
``logprobs.content`` is a list with an entry for each token (llama.cpp), which has an id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from recbole_llamarec.ranking.served.client import BadAnswerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BY_ID = "token_id:"  # as vLLM writes ids with return_tokens_as_token_ids


class LabelTokens:
    """The labels' tokens, as servers name them.

    Args:
        tokenizer: the model's.
        token_ids: of the labels, distinct.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> None:
        self.token_ids = tuple(token_ids)
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """A token's text, as a server decodes it alone."""
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    def id_of(self, name: str) -> int | None:
        """The id of the label that a server names by text or by id; ``None`` if it is no label.

        Raises:
            BadAnswerError: labels cannot be told from other tokens by their texts.
        """
        if name.startswith(BY_ID) and name.removeprefix(BY_ID).isdecimal():
            return int(name.removeprefix(BY_ID))
        return self._by_text.get(name)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """Labels by text, where no other token of the vocabulary has a label's text."""
        labels = {self.text(token_id): token_id for token_id in self.token_ids}
        for other in range(len(self._tokenizer)):
            text = self.text(other)
            if labels.get(text, other) != other:
                raise BadAnswerError(
                    f"llm_http_url: the server names tokens by their texts, and {text!r} is both "
                    f"the label's token {labels[text]} and the token {other}. Use a server that "
                    "gives ids (vLLM, llama.cpp)."
                )
        return labels


def label_log_probabilities(
    answer: dict[str, Any], labels: LabelTokens, n_prompt_tokens: int
) -> dict[int, float]:
    """The log-probabilities of those labels that an answer has.

    Args:
        answer: JSON of ``/v1/completions`` to one prompt, with one token generated.
        labels: whose log-probabilities are wanted.
        n_prompt_tokens: tokens that were sent.

    Returns:
        by token id, up to a constant.

    Raises:
        BadAnswerError: the answer has another form; or the server read other tokens than were sent.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = len(choices) if isinstance(choices, list) else "no"
        raise BadAnswerError(
            f"llm_http_url: the server gives {count} choices, where one was asked for."
        )
    usage = answer.get("usage")
    n_read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(n_read, int) and n_read != n_prompt_tokens:
        raise BadAnswerError(
            f"llm_http_url: the server read {n_read} tokens, where {n_prompt_tokens} were sent. It "
            "must take prompts as they are: let it add no token at the beginning (BOS), and cut "
            "none; or set prompt_max_tokens below what it takes."
        )
    found: dict[int, float] = {}
    for token_id, value in _entries(choices[0].get("logprobs"), labels):
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise BadAnswerError(
                f"llm_http_url: the server gives the log-probability {value!r} for the token "
                f"{token_id}, which is no number."
            )
        if token_id in labels.token_ids:
            found[token_id] = float(value)
    return found


def _entries(logprobs: Any, labels: LabelTokens) -> Iterator[tuple[int | None, Any]]:
    """Token and log-probability of each entry of the one generated token."""
    held = logprobs if isinstance(logprobs, dict) else {}
    if (token := _only(held.get("content"))) is not None:
        entries = token.get("top_logprobs") or token.get("top_probs") or []
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            for entry in entries:
                named = entry.get("id")
                own = named if isinstance(named, int) else labels.id_of(str(entry.get("token")))
                yield own, entry["logprob"] if "logprob" in entry else _log(entry.get("prob"))
            return
    elif (token := _only(held.get("top_logprobs"))) is not None:
        for name, value in token.items():
            yield labels.id_of(name), value
        return
    raise BadAnswerError(
        "llm_http_url: the server's answer has no log-probabilities of one token (logprobs: "
        f"{str(logprobs)[:200]}). Use a server that gives them in /completions."
    )


def _only(tokens: Any) -> dict[str, Any] | None:
    """What a list of one token says of it; ``None`` where it is no such list."""
    is_one = isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], dict)
    return tokens[0] if is_one else None


def _log(probability: Any) -> float | None:
    """The logarithm of a probability, as llama.cpp gives it behind the sampler."""
    is_positive = isinstance(probability, int | float) and probability > 0
    return math.log(probability) if is_positive else None
