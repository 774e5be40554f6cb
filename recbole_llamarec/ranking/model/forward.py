"""Final hidden states of prompts at chosen places, computed in one of three ways.

A prompt is a context and what continues it. All three ways give the same states.

Shapes: B prompts, C contexts, T tokens of the longest context or prompt, S tokens of the longest
continuation, P places that are read, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.model.adapter import base_model
from recbole_llamarec.ranking.model.batching import pad_right, whole_prompts
from recbole_llamarec.ranking.model.packed_attention import PACKED, packed_states, use_packing
from recbole_llamarec.ranking.model.packing import pack
from recbole_llamarec.ranking.model.states import (
    decoder_states,
    last_feed_forward,
    lengths_multiple,
    only_rows,
    texts_to_try,
    tolerated_error,
)

Tokens = Sequence[int]
Contexts = Sequence[Tokens]
Continuations = Sequence[Sequence[Tokens]]
Places = Sequence[Sequence[Sequence[int]]]

logger = logging.getLogger(__name__)


class Forward(Protocol):
    """A way to compute the final hidden states of prompts.

    Attributes:
        shares_beginnings: whether prompts of one pass compute a common beginning once, whichever
            contexts they belong to; then ``TokenBudget.batches`` may be told to ``share``.
        pads_contexts_apart: whether contexts with several continuations are padded to one length
            and the continuations to another (``Encoded.n_context``).
    """

    shares_beginnings: bool
    pads_contexts_apart: bool

    def cost(self, contexts: Contexts, continuations: Continuations) -> list[int]:
        """Count the tokens that enter the model for each context with its continuations.

        Args:
            contexts: token ids of each context, at least one each.
            continuations: token ids of what continues each context; ``[[]]`` for nothing.

        Returns:
            Tokens of each context with its continuations in a separate pass, padding included.
        """
        ...

    def hidden_at(self, contexts: Contexts, continuations: Continuations, places: Places) -> Tensor:
        """Return final hidden states at some places, without computing any logits.

        Args:
            contexts: token ids of each context, at least one each.
            continuations: token ids of what continues each context; ``[[]]`` for nothing.
            places: for each continuation of each context the tokens that are read, counted from 0
                in context + continuation.

        Returns:
            ``[P, H]``, in the order of ``places``: states after the final norm, which the output
            head reads; differentiable where gradients are enabled.
        """
        ...


def forward_for(model: nn.Module, attention: str, device: torch.device) -> Forward:
    """Choose the fastest way that works with a model, which is tried out.

    Args:
        model: causal language model, plain or wrapped by PEFT; switched to packed attention where
            that is chosen.
        attention: the value of ``llm_attention``.
        device: where the model is.

    Raises:
        ValueError: ``packed`` on another device than a CPU, or of a model that mixes prompts.
    """
    check_attention(attention, device)
    base: Any = base_model(model)
    was_training = base.training
    base.eval()
    try:
        if attention == PACKED or (attention == "auto" and device.type == "cpu"):
            if use_packing(base):
                return Packed(base)
            if attention == PACKED:
                raise ValueError(
                    f"llm_attention: packed: {base.name_or_path!r} does not keep packed prompts "
                    "apart; set llm_attention to auto, sdpa or eager."
                )
            logger.info("%s cannot be packed.", base.name_or_path)
        if _keeps_contexts(base):
            return PrefixCache(base)
    finally:
        base.train(was_training)
    logger.info("%s cannot read a context's cache; whole prompts are padded.", base.name_or_path)
    return Padded(base)


def check_attention(attention: str, device: torch.device) -> None:
    """Refuse packed attention on anything but a CPU, and flex_attention on one.

    Raises:
        ValueError: names ``llm_attention``.
    """
    if attention == PACKED and device.type != "cpu":
        raise ValueError(
            f"llm_attention: packed is for a CPU, and on {device} it would compute one segment "
            "after the other. Set llm_attention to auto, which computes each context once."
        )
    if attention == "flex_attention" and device.type == "cpu":
        raise ValueError("llm_attention: flex_attention has no gradients on a CPU; set auto.")


class Padded:
    """Whole prompts, padded on the right to the longest of the batch.

    No attention mask is passed: padding comes after every real token, which does not see it, and
    attention without a mask takes the faster kernels.

    Args:
        model: causal language model, plain or wrapped by PEFT.
    """

    shares_beginnings = False
    pads_contexts_apart = False

    def __init__(self, model: nn.Module) -> None:
        # PEFT puts its layers inside the base model, so the base model's forward has the adapter.
        self._base: Any = base_model(model)

    def cost(self, contexts: Contexts, continuations: Continuations) -> list[int]:
        """Count tokens; see :meth:`Forward.cost`."""
        return [
            len(group) * (len(context) + max(map(len, group)))
            for context, group in zip(contexts, continuations, strict=True)
        ]

    def hidden_at(self, contexts: Contexts, continuations: Continuations, places: Places) -> Tensor:
        """Return hidden states ``[P, H]``; see :meth:`Forward.hidden_at`."""
        prompts, read = whole_prompts(contexts, continuations, places)
        device = next(self._base.parameters()).device
        input_ids = pad_right(prompts, device)  # [B, T]
        longest = input_ids.shape[1]
        rows = _on(device, [i * longest + at for i, at in enumerate(read)])  # [P], in [B * T]
        states = decoder_states(self._base, rows.unique(), input_ids=input_ids)  # [B * T, H]
        return states[rows]  # [P, H]


class Packed:
    """All prompts of a batch in one row, where a common beginning is computed once.

    Args:
        model: causal language model, plain or wrapped by PEFT, which :func:`use_packing` switched.
    """

    shares_beginnings = True
    pads_contexts_apart = False

    def __init__(self, model: nn.Module) -> None:
        self._base: Any = base_model(model)

    def cost(self, contexts: Contexts, continuations: Continuations) -> list[int]:
        """Count tokens; see :meth:`Forward.cost`."""
        return [
            len(context) + len(group[0])
            if len(group) == 1
            else len(pack([[*context, *continuation] for continuation in group]).input_ids)
            for context, group in zip(contexts, continuations, strict=True)
        ]

    def hidden_at(self, contexts: Contexts, continuations: Continuations, places: Places) -> Tensor:
        """Return hidden states ``[P, H]``; see :meth:`Forward.hidden_at`."""
        prompts, read = whole_prompts(contexts, continuations, places)
        device = next(self._base.parameters()).device
        packing = pack(prompts, device, lengths_multiple(self._base.dtype))
        rows = _on(device, [packing.rows(i)[at] for i, at in enumerate(read)])  # [P]
        with only_rows(last_feed_forward(self._base), rows.unique()):
            return packed_states(self._base.get_decoder(), packing)[rows]  # [P, H]


class PrefixCache:
    """Each context once; its continuations, a row each, read its keys and values.

    Contexts are padded on the left, as transformers' generation pads them, so that each
    continuation stands right behind its context. Where no context has several, all are padded.

    Args:
        model: causal language model, plain or wrapped by PEFT, that reads a cache of transformers.
    """

    shares_beginnings = False
    pads_contexts_apart = True

    def __init__(self, model: nn.Module) -> None:
        self._base: Any = base_model(model)
        self._padded = Padded(model)

    def cost(self, contexts: Contexts, continuations: Continuations) -> list[int]:
        """Count tokens; see :meth:`Forward.cost`."""
        return [
            len(context) + sum(map(bool, group)) * max(map(len, group))
            for context, group in zip(contexts, continuations, strict=True)
        ]

    def hidden_at(self, contexts: Contexts, continuations: Continuations, places: Places) -> Tensor:
        """Return hidden states ``[P, H]``; see :meth:`Forward.hidden_at`."""
        if all(len(group) == 1 for group in continuations):
            return self._padded.hidden_at(contexts, continuations, places)
        if not any(map(any, continuations)):  # all are empty: each context is a prompt
            once = [[[at for read in of_context for at in read]] for of_context in places]
            return self._padded.hidden_at(contexts, [[[]]] * len(contexts), once)
        from recbole_llamarec.ranking.model.prefix import ContextCache, pad_left

        device = next(self._base.parameters()).device
        shown = [(i, ids) for i, group in enumerate(continuations) for ids in group if ids]
        context_of = torch.tensor([i for i, _ in shown], device=device)  # [B]
        context_ids, mask = pad_left(contexts, device)  # [C, T]
        next_ids = pad_right([ids for _, ids in shown], device)  # [B, S]
        n_first, longest = context_ids.numel(), context_ids.shape[1]
        rows = self._rows(contexts, continuations, places, longest, next_ids.shape[1])
        read = torch.tensor(rows, device=device)  # [P], in [C * T + B * S]

        cache = ContextCache(config=self._base.config)
        inputs: dict[str, Tensor] = {}
        if mask is not None:
            inputs["attention_mask"] = mask
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # [C, T]
        first = decoder_states(
            *(self._base, read[read < n_first].unique()),
            input_ids=context_ids,
            past_key_values=cache,
            **inputs,
        )  # [C * T, H]

        if mask is not None:
            seen = torch.cat([mask[context_of], torch.ones_like(next_ids)], dim=1)  # [B, T + S]
            inputs["attention_mask"] = seen
        starts = torch.tensor([len(contexts[i]) for i, _ in shown], device=device)  # [B]
        inputs["position_ids"] = starts[:, None] + torch.arange(next_ids.shape[1], device=device)
        second = decoder_states(
            *(self._base, read[read >= n_first].unique() - n_first),
            input_ids=next_ids,
            past_key_values=cache.read_by(context_of),
            **inputs,
        )  # [B * S, H]
        return torch.cat([first, second])[read]  # [P, H]

    @staticmethod
    def _rows(
        contexts: Contexts, continuations: Continuations, places: Places, longest: int, width: int
    ) -> list[int]:
        """Row of each place among the states of both passes, one after the other."""
        rows: list[int] = []
        n_shown = 0
        for i, (context, group) in enumerate(zip(contexts, continuations, strict=True)):
            in_context = (i + 1) * longest - len(context)  # where the context's first token stands
            for continuation, read in zip(group, places[i], strict=True):
                beyond = len(contexts) * longest + n_shown * width - len(context)
                rows += [(in_context if at < len(context) else beyond) + at for at in read]
                n_shown += bool(continuation)
        return rows


def _on(device: torch.device, parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)


@torch.no_grad()
def _keeps_contexts(base: Any) -> bool:
    """Try out whether continuations that read a cache get the states of the whole prompts."""
    *texts, a, b, c, d = texts_to_try(base, 24, 3, 24, 3, 3, 1, 2, 3)
    contexts, others, continuations = texts[:2], texts[2:], [[a, b, []], [c, d]]
    places = [[[26], [24], [23]], [[4], [5]]]
    whole = Padded(base).hidden_at(contexts, continuations, places).float()  # [5, H]
    wrong = Padded(base).hidden_at(others, continuations, places).float()  # [5, H]
    try:
        cached = PrefixCache(base).hidden_at(contexts, continuations, places).float()  # [5, H]
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as reason:
        logger.debug("Reading a context's cache failed: %s", reason)
        return False
    return bool((cached - whole).norm() < (wrong - whole).norm() * tolerated_error(base))
