"""A cache of contexts that many rows read at once; it needs transformers when it is imported.

Shapes: C contexts, T tokens of the longest, B rows of the next pass, S tokens of the longest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class ContextCache(DynamicCache):
    """Keys and values of contexts, which the rows of a further pass read before what is theirs.

    Those of the further pass are not kept, and a layer's contexts are expanded over the rows only
    while that layer is computed: all layers at once would take as much memory as computing each
    context once a row. A layer that is computed again, for its gradients, adds nothing.

    Attributes:
        contexts: the context of each row of the further pass, int64 ``[B]``; None while the
            contexts themselves are computed.
    """

    contexts: Tensor | None = None

    def read_by(self, contexts: Tensor) -> ContextCache:
        """The same keys and values as rows read them.

        Args:
            contexts: the context of each row, int64 ``[B]``.
        """
        reading = copy.copy(self)
        reading.contexts = contexts
        return reading

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer that its queries may see, as transformers asks."""
        layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if self.contexts is None:
            if layer is not None and layer.is_initialized:
                return key_states, value_states
            return super().update(key_states, value_states, layer_idx, *args, **options)
        keys = torch.cat([layer.keys[self.contexts], key_states], dim=-2)
        values = torch.cat([layer.values[self.contexts], value_states], dim=-2)
        return keys, values


def pad_left(
    contexts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Pad token ids on the left with token 0.

    Args:
        contexts: token ids, at least one each.
        device: where the tensors go.

    Returns:
        ``input_ids`` ``[C, T]`` int64, and which of them are real, ``[C, T]`` int64; None where
        there is no padding.
    """
    lengths = [len(context) for context in contexts]
    longest = max(lengths)
    input_ids = torch.zeros(len(lengths), longest, dtype=torch.int64)  # [C, T]
    mask = torch.zeros_like(input_ids)  # [C, T]
    for row, context in enumerate(contexts):
        input_ids[row, longest - len(context) :] = torch.tensor(context)
        mask[row, longest - len(context) :] = 1
    padded = min(lengths) < longest
    return input_ids.to(device), mask.to(device) if padded else None
