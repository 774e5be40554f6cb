"""Running a model's decoder for the states at some tokens, without computing any logits.

Shapes: B rows of the input, T tokens of each, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def decoder_states(base: Any, rows: Tensor, **inputs: Any) -> Tensor:
    """Run the decoder for the states at some tokens of its input.

    Args:
        base: causal language model, not wrapped by PEFT.
        rows: places in the flattened input, distinct, int64.
        **inputs: of the decoder, ``input_ids`` ``[B, T]`` among them.

    Returns:
        ``[B * T, H]`` states after the final norm, which are right at ``rows`` only.
    """
    inputs["use_cache"] = "past_key_values" in inputs
    # at least one row, as not every kernel takes none
    with only_rows(last_feed_forward(base), rows if len(rows) else rows.new_zeros(1)):
        return base.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)  # [B * T, H]


def last_feed_forward(base: Any) -> nn.Module | None:
    """Return the last layer's feed-forward network, where it has its usual name."""
    layers = getattr(base.get_decoder(), "layers", None)
    return getattr(layers[-1], "mlp", None) if layers else None


@contextmanager
def only_rows(module: nn.Module | None, rows: Tensor) -> Iterator[None]:
    """Within, a module that works on each position alone computes these and returns 0 elsewhere.

    Nothing behind the last layer's feed-forward network mixes positions, so that only those that
    are read need it.

    Args:
        module: its input and output, or the first of several, are ``[..., H]``; None changes
            nothing.
        rows: positions, counted over all dimensions but the last.
    """
    if module is None:
        yield
        return
    shape = torch.Size()

    def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0].flatten(0, -2)[rows][None], *inputs[1:])  # [1, rows, H]

    def put_back(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # with the router's scores, of a mixture of experts
            return (put_back(_module, _inputs, output[0]), *output[1:])
        whole = output.new_zeros(shape).flatten(0, -2)  # [B * T, H]
        return whole.index_copy(0, rows, output[0]).view(shape)

    hooks = [module.register_forward_pre_hook(select), module.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def reads_left_to_right(base: Any) -> bool:
    """Try out whether no token changes the state of one before it, as in an encoder such as BERT.

    transformers loads encoders as causal language models, too.

    Args:
        base: a model of transformers, in evaluation mode.
    """
    device = next(base.parameters()).device
    input_ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=device)
    states = base.get_decoder()(input_ids=input_ids).last_hidden_state[:, :2].float()  # [2, 2, H]
    return bool((states[0] - states[1]).norm() < 0.01 * states[0].norm())


def texts_to_try(base: Any, *lengths: int) -> list[list[int]]:
    """Return token ids of texts on which two ways of computing states can be compared.

    They are drawn from the middle of the vocabulary, the same for each call. Special tokens, which
    stand at its ends, and repetitions make a model so sensitive that rounding in bfloat16 moves
    its states as far as another text does.

    Args:
        base: causal language model, not wrapped by PEFT.
        lengths: tokens of each text.
    """
    n_tokens = base.get_input_embeddings().num_embeddings
    generator = np.random.default_rng(0)
    return [
        generator.integers(n_tokens // 20, n_tokens - n_tokens // 20, size=length).tolist()
        for length in lengths
    ]


def tolerated_error(base: Any) -> float:
    """How far rounding may move states that are compared, as a share of what a fault does.

    Activations of 8 bits move them by up to a half, other precisions by an eighth.
    """
    return 1.0 if getattr(base, "is_loaded_in_8bit", False) else 0.25


def lengths_multiple(dtype: torch.dtype) -> int:
    """What lengths are rounded up to: in half precision every new one costs time on a CPU.

    oneDNN compiles each matrix product of a new shape, for longer than a thousand tokens' product
    then takes.
    """
    return 64 if dtype in (torch.bfloat16, torch.float16) else 1


def rounded_up(length: int, multiple: int) -> int:
    """The least multiple that is no less than a length."""
    return -(-length // multiple) * multiple
