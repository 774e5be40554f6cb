"""The forms in which servers can be asked for the log-probabilities of labels.

Servers differ in what they take, so the forms are tried on some prompts, in this order:

1. ``logprob_token_ids``, as vLLM takes it: exactly the labels, up to 128.
2. ``logit_bias``, where the log-probabilities are those behind the bias: 100 on each label brings
   all of them to the top and leaves their differences as they are. llama.cpp gives them behind the
   bias with ``post_sampling_probs``, vLLM with ``--logprobs-mode processed_logprobs``. It is taken
   only where it gives the same differences as the third form.
3. ``logprobs`` alone: the most probable tokens of the vocabulary, as many as the server allows;
   labels may be missing among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

BIAS = 100  # OpenAI's largest; probabilities of other tokens all but vanish beside the labels'
MOST_TOP = (128, 20, 5)  # most probable tokens: what llama.cpp gives; vLLM's limit; OpenAI's
_IDS = {"return_tokens_as_token_ids": True}  # vLLM and SGLang name tokens by ids then


@dataclass(frozen=True)
class Form:
    """One form of a request.

    Attributes:
        name: for the log and for errors.
        has_all: whether each answer has every label.
        fields: what the request has beside model and prompt, from the labels' token ids.
    """

    name: str
    has_all: bool
    fields: Callable[[Sequence[int]], dict[str, Any]]


def _top(count: int, more: dict[str, Any], name: str) -> Form:
    return Form(f"logprobs: {count}{name}", False, lambda ids: {"logprobs": count, **more})


NAMED = Form(
    "logprob_token_ids",
    True,
    lambda ids: {"logprobs": 1, "logprob_token_ids": list(ids), **_IDS},
)
BIASED = Form(
    "logit_bias",
    True,
    lambda ids: {
        "logprobs": len(ids),
        "logit_bias": {str(token_id): BIAS for token_id in ids},
        "post_sampling_probs": True,
        "samplers": [],
        **_IDS,
    },
)
TOP = (
    *(_top(count, _IDS, "") for count in MOST_TOP),
    *(_top(count, {}, " by text") for count in MOST_TOP),
)
