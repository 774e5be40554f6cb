"""The output head of a causal language model, read for some tokens only.

Shapes: B prompts, P places that are read, H hidden size, K tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.model.adapter import base_model
from recbole_llamarec.ranking.model.lora import model_name
from recbole_llamarec.ranking.model.states import texts_to_try

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # in configs
N_TRIED = 8  # tokens on which a model's logits are compared with its head's output
ROUNDING = 0.02  # by which they may differ, as a share; bfloat16 rounds to 0.004


@dataclass(frozen=True)
class LogitScaling:
    """What a model makes of its head's output: ``softcap * tanh(scale * output / softcap)``.

    Attributes:
        scale: 1 for most models; Granite divides by a number, Cohere multiplies by one.
        softcap: bound of the logits (Gemma 2); None where the model has none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Return the logits, of the shape of ``output``."""
        logits = output if self.scale == 1 else self.scale * output
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


UNSCALED = LogitScaling()


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


@torch.no_grad()
def logit_scaling(model: nn.Module) -> LogitScaling:
    """Measure how a model scales its logits, whose configs state it under many names.

    Args:
        model: causal language model, plain or wrapped by PEFT; its logits of a short text are
            compared with its head's output.

    Raises:
        ValueError: its logits are not the head's output times a number.
    """
    base: Any = base_model(model)
    head, softcap = output_head(model), final_softcap(model)
    input_ids = torch.tensor(texts_to_try(base, N_TRIED), device=next(base.parameters()).device)
    was_training = base.training
    base.eval()
    try:
        states = base.get_decoder()(input_ids=input_ids).last_hidden_state
        output = head(states).float()  # [1, T, V]
        logits = base(input_ids=input_ids).logits.float()  # [1, T, V]
    finally:
        base.train(was_training)
    if not logits.isfinite().all():  # whoever ranks with them is told of which row
        return LogitScaling(softcap=softcap)
    before, after = output.flatten(), logits.flatten()
    if softcap is not None:
        seen = after.abs() < 0.9 * softcap  # nearer to it, rounding hides what has been capped
        before, after = before[seen], softcap * torch.atanh(after[seen] / softcap)
    scale = float(before @ after / (before @ before))
    scaling = LogitScaling(1.0 if abs(scale - 1) < ROUNDING else scale, softcap)
    if not (scaling(output) - logits).norm() <= ROUNDING * logits.norm():
        raise ValueError(
            f"llm_name_or_path: the output head of {model_name(base)!r}, a {type(base).__name__}, "
            "is not understood: the model's logits are not the head's output times a number. Give "
            "another model."
        )
    return scaling


def head_logits(
    hidden: Tensor, head: nn.Module, token_ids: Tensor, scaling: LogitScaling = UNSCALED
) -> Tensor:
    """Return the logits of some tokens, computed in float32 from their rows of the head only.

    A head that is quantised or carries an adapter is called as a whole instead.

    Args:
        hidden: `[B, H]`, final hidden states.
        head: the model's output layer, H to the vocabulary, with or without a bias.
        token_ids: `[K]` int64, on the device of `hidden`.
        scaling: what :func:`logit_scaling` says of the model.

    Returns:
        `[B, K]`, float32.
    """
    rows = _rows(head, token_ids)
    if rows is None:
        return scaling(head(hidden)[:, token_ids].float())  # [B, V] -> [B, K]
    return scaling(_product(hidden, *rows))  # [B, K]


class TokenHead:
    """The output head for some tokens, whose rows are gathered once.

    It is for a head that does not change: neither tuned nor moved to another device.

    Args:
        model: causal language model, plain or wrapped by PEFT.
        token_ids: K tokens.
        scaling: what :func:`logit_scaling` says of the model.
    """

    def __init__(
        self, model: nn.Module, token_ids: Sequence[int], scaling: LogitScaling = UNSCALED
    ) -> None:
        self._head = output_head(model)
        self._scaling = scaling
        device = next(self._head.parameters()).device
        self.token_ids = torch.tensor(token_ids, device=device)  # [K]
        with torch.no_grad():
            self._rows = _rows(self._head, self.token_ids)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits as :func:`head_logits` does, float32 ``[P, H]`` to ``[P, K]``."""
        if self._rows is None:
            return head_logits(hidden, self._head, self.token_ids, self._scaling)
        return self._scaling(_product(hidden, *self._rows))


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


def final_softcap(model: nn.Module) -> float | None:
    """Return the cap c that some models put on their logits, `c * tanh(logits / c)` (Gemma 2).

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The cap, or None.
    """
    base: Any = base_model(model)
    caps = [getattr(base.config.get_text_config(), name, None) for name in SOFTCAPS]
    return next((cap for cap in caps if cap is not None), None)


def max_positions(model: nn.Module) -> int | None:
    """Return how many tokens a prompt may have for this model.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The limit in tokens, or None where the model's config states none.
    """
    base: Any = base_model(model)
    return getattr(base.config.get_text_config(), "max_position_embeddings", None)


def prompt_limit(wanted: int | None, positions: int | None, n_behind: int = 0) -> int | None:
    """Return the most tokens of a prompt.

    Args:
        wanted: the value of ``prompt_max_tokens``; ``None`` is as many as the model reads.
        positions: tokens that the model reads, see :func:`max_positions`.
        n_behind: tokens that stand behind the prompt.

    Raises:
        ValueError: more are wanted than the model reads.
    """
    if positions is None:
        return wanted
    most = positions - n_behind
    if wanted is not None and wanted > most:
        behind = f", {n_behind} of them behind the prompt" if n_behind else ""
        raise ValueError(
            f"prompt_max_tokens: {wanted} is beyond the model's {positions} positions{behind}; "
            f"set it to at most {most}, or to ~."
        )
    return most if wanted is None else wanted
