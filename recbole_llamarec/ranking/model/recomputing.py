"""Layers that are computed again for their gradients, so that less memory is held (checkpointing).

Chen et al. 2016, arXiv 1604.06174: of a layer its input alone is kept for the backward pass, which
takes about a third longer for it. transformers' own way drops the cache of contexts
(:mod:`~recbole_llamarec.ranking.model.prefix`), and is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from recbole_llamarec.ranking.model.adapter import base_model
from recbole_llamarec.ranking.model.lora import model_name


@contextmanager
def recomputed_layers(model: nn.Module) -> Iterator[None]:
    """Within, layers are computed again in a backward pass, all but the last one.

    The last layer's gradients are needed first, when it has just been computed.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Raises:
        ValueError: its layers are not found.
    """
    layers = decoder_layers(model)[:-1]
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's is seen again


def decoder_layers(model: nn.Module) -> list[Any]:
    """The layers of a causal language model's decoder, in their order.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Raises:
        ValueError: it has no list of as many layers as its configuration says.
    """
    base: Any = base_model(model)
    count = base.config.get_text_config().num_hidden_layers
    for part in base.get_decoder().children():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return list(part)
    raise ValueError(
        f"train_gradient_checkpointing: True: the model {model_name(base)} has no list of its "
        f"{count} layers that could be computed again; set train_gradient_checkpointing to False."
    )


def _recomputed(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, **options)
