"""Attention within the prompts of a packed row, in the form that transformers asks for.

Shapes: N tokens of the row, H hidden size, Q query heads, K key heads, D head size, L tokens of a
segment, C tokens before it in its prompt.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.model.packing import MIN_SHARED, Packing, pack
from recbole_llamarec.ranking.model.states import rounded_up, texts_to_try, tolerated_error

PACKED = "packed"  # the name of the attention function in transformers
QUERY_BLOCK = 192  # queries that meet their keys at once: what lies above the diagonal is skipped
_SPECIAL = ("s_aux", "position_bias", "cache")  # of transformers' models, and not computed here

logger = logging.getLogger(__name__)


def packed_states(decoder: nn.Module, packing: Packing) -> Tensor:
    """Return the final hidden states of a packed row, ``[N, H]``.

    Args:
        decoder: a causal language model's, whose attention is :data:`PACKED`.
        packing: the prompts.
    """
    # transformers hands a mask of four dimensions on as it is; packed attention does not read it,
    # and what another attention reads from it shows.
    unused = torch.full((1, 1, 1, 1), torch.nan, device=packing.input_ids.device)
    return decoder(
        input_ids=packing.input_ids[None],
        position_ids=packing.position_ids[None],
        attention_mask=unused,
        use_cache=False,
        packing=packing,
    ).last_hidden_state[0]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packing: Packing | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each prompt of a packed row, in the form that transformers asks for.

    Args:
        query: ``[1, Q, N, D]``.
        key, value: ``[1, K, N, D]``; Q is a multiple of K.
        attention_mask: read only without ``packing``.
        packing: the row's prompts; without it this is transformers' ``sdpa``.

    Returns:
        ``[1, N, Q, D]``, and no attention weights.

    Raises:
        ValueError: the model's attention has something that is not computed here.
    """
    if packing is None:
        from transformers import AttentionInterface

        sdpa = AttentionInterface()["sdpa"]
        others |= {"dropout": dropout, "scaling": scaling, "softcap": softcap}
        others |= {"sliding_window": sliding_window}
        return sdpa(module, query, key, value, attention_mask, **others)
    if unknown := [name for name in _SPECIAL if others.get(name) is not None]:
        raise ValueError(f"llm_attention: packed does not compute {unknown}; set sdpa or eager.")
    query = query * (query.size(-1) ** -0.5 if scaling is None else scaling)
    pieces = []
    for segment in packing.segments:
        # What stands behind a segment is seen by none of its queries.
        stop = segment.start + rounded_up(segment.stop - segment.start, packing.multiple)
        own = slice(segment.start, min(stop, query.size(2)))
        seen = (*segment.context, own)
        keys = torch.cat([key[0, :, part] for part in seen], dim=1)  # [K, C + L, D]
        values = torch.cat([value[0, :, part] for part in seen], dim=1)  # [K, C + L, D]
        for start in range(segment.start, segment.stop, QUERY_BLOCK):
            queries = query[0, :, start : min(start + QUERY_BLOCK, own.stop)]  # [Q, l, D]
            first = segment.n_before + start - segment.start  # the first query's place
            attended = _attend(queries, keys, values, first, sliding_window, softcap, dropout)
            pieces.append(attended[:, : segment.stop - start])  # [Q, l, D]
    if filler := query.size(2) - packing.segments[-1].stop:
        pieces.append(query.new_zeros(query.size(1), filler, query.size(3)))
    return torch.cat(pieces, dim=1).transpose(0, 1)[None].contiguous(), None


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    first: int,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Causal attention of queries at the places ``first``, ``first + 1`` ..; ``[Q, l, D]``."""
    n_heads, n_queries, _ = queries.shape
    n_keys = first + n_queries
    begin = max(0, first - window + 1) if window else 0  # what no query sees
    keys, values = keys[:, begin:n_keys], values[:, begin:n_keys]  # [K, k, D]
    mask = _causal_mask(n_queries, n_keys - begin, window, queries.dtype, queries.device)
    if queries.dtype == torch.float32 and not softcap:
        return nn.functional.scaled_dot_product_attention(
            *(queries[None], keys[None], values[None]),
            attn_mask=mask,
            dropout_p=dropout,
            scale=1.0,
            enable_gqa=True,
        )[0]
    # On a CPU, plain matrix products in half precision are twice as fast as torch's own attention.
    grouped = queries.reshape(len(keys), -1, queries.size(-1))  # [K, Q / K * l, D]
    masks = mask.repeat(n_heads // len(keys), 1)  # [Q / K * l, k]
    if softcap:
        scores = torch.bmm(grouped, keys.transpose(1, 2))  # [K, Q / K * l, k]
        scores = softcap * torch.tanh(scores / softcap) + masks
    else:
        scores = torch.baddbmm(masks, grouped, keys.transpose(1, 2))  # [K, Q / K * l, k]
    weights = scores.softmax(dim=-1)  # [K, Q / K * l, k]
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return torch.bmm(weights, values).view(n_heads, n_queries, -1)  # [Q, l, D]


@lru_cache(maxsize=128)  # all layers read the same ones
@torch.inference_mode(False)  # and gradients flow through them later
def _causal_mask(
    n_queries: int, n_keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What to add to the scores where the queries are the last of the keys; ``[l, k]``."""
    places = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]  # [l, 1]
    seen = torch.arange(n_keys, device=device)  # [k]
    visible = seen <= places  # [l, k]
    if window:
        visible &= seen > places - window
    mask = torch.zeros(n_queries, n_keys, dtype=dtype, device=device)
    return mask.masked_fill_(~visible, -torch.inf)


@torch.no_grad()
def use_packing(model: Any) -> bool:
    """Switch a model to packed attention if, by trial, it then keeps the prompts of a row apart.

    Models with a recurrent state, or with attention of their own, do not.

    Args:
        model: a causal language model of transformers, in evaluation mode; its attention stays as
            it is otherwise.

    Returns:
        whether it has been switched.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    attention = model.config._attn_implementation
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, AttentionMaskInterface()["sdpa"])  # where unpacked
    decoder = model.get_decoder()
    # Packing sorts: what is read, the last two prompts, stands behind one that is changed.
    lengths = [2 * MIN_SHARED] * 2 + [MIN_SHARED] * 3
    *texts, a, b, c = texts_to_try(model, *lengths)
    (shared, other), (first, changed, last) = sorted(texts), sorted((a, b, c))
    read = [[*shared, *last], other]
    device = next(model.parameters()).device
    packing, with_changed = (pack([[*shared, *end], *read], device) for end in (first, changed))

    def states(input_ids: Tensor) -> Tensor:
        return decoder(input_ids=input_ids[None], use_cache=False).last_hidden_state[0].float()

    as_one = states(packing.input_ids)[packing.ends[1:]]  # [2, H]: each sees what stands before it
    alone = torch.stack([states(packing.input_ids.new_tensor(prompt))[-1] for prompt in read])
    leak = (as_one - alone).norm()
    try:
        model.set_attn_implementation(PACKED)
        packed, other_row = (
            packed_states(decoder, each)[each.ends[1:]].float()  # [2, H]
            for each in (packing, with_changed)
        )
        error, moved = (packed - alone).norm(), (packed - other_row).norm()
        # Products of the same shapes are rounded in the same way, so that neighbours move nothing.
        if error < leak * tolerated_error(model) and moved < leak / 64:
            return True
    except (TypeError, ValueError, RuntimeError) as reason:
        logger.debug("Packing failed: %s", reason)
    model.set_attn_implementation(attention)
    return False
