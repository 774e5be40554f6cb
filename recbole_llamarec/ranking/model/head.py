"""The output head of a causal language model, read for some tokens only.

Shapes: B prompts, P places that are read, H hidden size, K tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.model.adapter import base_model


def output_head(model: nn.Module) -> nn.Module:
    """Return the layer that turns hidden states into logits.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The head, with `weight` `[V, H]` and perhaps `bias` `[V]`.

    Raises:
        ValueError: the model has none, so it is no causal language model.
    """
    base: Any = base_model(model)
    head = base.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"llm_name_or_path: {base.name_or_path!r} is a {type(base).__name__}, which has no "
            "output head; give a causal language model."
        )
    return head


def head_logits(
    hidden: Tensor, head: nn.Module, token_ids: Tensor, softcap: float | None = None
) -> Tensor:
    """Return the logits of some tokens, computed in float32 from their rows of the head only.

    A head that is quantised or carries an adapter is called as a whole instead.

    Args:
        hidden: `[B, H]`, final hidden states.
        head: the model's output layer, H to the vocabulary, with or without a bias.
        token_ids: `[K]` int64, on the device of `hidden`.
        softcap: what :func:`final_softcap` returns.

    Returns:
        `[B, K]`, float32.
    """
    rows = _rows(head, token_ids)
    if rows is None:
        return _capped(head(hidden)[:, token_ids].float(), softcap)  # [B, V] -> [B, K]
    return _capped(_product(hidden, *rows), softcap)  # [B, K]


class TokenHead:
    """The output head for some tokens, whose rows are gathered once.

    It is for a head that does not change: neither tuned nor moved to another device.

    Args:
        model: causal language model, plain or wrapped by PEFT.
        token_ids: K tokens.
    """

    def __init__(self, model: nn.Module, token_ids: Sequence[int]) -> None:
        self._head = output_head(model)
        self._softcap = final_softcap(model)
        device = next(self._head.parameters()).device
        self.token_ids = torch.tensor(token_ids, device=device)  # [K]
        with torch.no_grad():
            self._rows = _rows(self._head, self.token_ids)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits as :func:`head_logits` does, float32 ``[P, H]`` to ``[P, K]``."""
        if self._rows is None:
            return head_logits(hidden, self._head, self.token_ids, self._softcap)
        return _capped(_product(hidden, *self._rows), self._softcap)


def _rows(head: nn.Module, token_ids: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weights ``[K, H]`` and biases ``[K]`` of some tokens, float32; None where there is no row."""
    # The exact types: a quantised head or one with an adapter is a subclass of either.
    if (
        type(head) is not nn.Linear
        or type(head.weight) is not nn.Parameter
        or not head.weight.is_floating_point()
    ):
        return None
    bias = None if head.bias is None else head.bias[token_ids].float()  # [K]
    return head.weight[token_ids].float(), bias


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), weight, bias)  # [B, K]


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def final_softcap(model: nn.Module) -> float | None:
    """Return the cap c that some models put on their logits, `c * tanh(logits / c)` (Gemma 2).

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The cap, or None.
    """
    base: Any = base_model(model)
    return getattr(base.config.get_text_config(), "final_logit_softcapping", None)


def max_positions(model: nn.Module) -> int | None:
    """Return how many tokens a prompt may have for this model.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The limit in tokens, or None where the model's config states none.
    """
    base: Any = base_model(model)
    return getattr(base.config.get_text_config(), "max_position_embeddings", None)
