"""Memory that tuning Llama-2-7B with QLoRA takes, by the shapes alone: nothing is computed.

    python benchmarks/gpu_memory.py

Prints the table of docs/gpu.md. Weights in NF4 with double quantisation take 4.127 bits each
(Dettmers et al. 2023, arXiv 2305.14314); what autograd keeps is counted on torch's device ``meta``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.ranking.model.adapter import add_adapter
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.tuning.budget import counting_saved_bytes, tokens_within

LLAMA_2_7B = LlamaConfig()  # transformers' own defaults are its shape
CARDS = (24, 48, 80)  # GiB
NF4_BYTES = 4.127 / 8  # of a weight
ADAPTER_BYTES = 4 + 4 + 8  # of a weight in float32, its gradient and AdamW's two moments
TOKENS = 64


class Flash(torch.autograd.Function):
    """Keeps for its gradient what flash attention keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return an output ``[B, heads, T, D]`` of no meaning."""
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def attention_by_shapes(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
):
    """Attention as transformers calls it."""
    return Flash.apply(query, key, value).transpose(1, 2).contiguous(), None


def main() -> None:
    """Print the table."""
    print(table(LLAMA_2_7B))


def adapted(config: LlamaConfig, dtype: torch.dtype) -> Any:
    """A model on the device ``meta`` with the default adapter."""
    AttentionInterface.register("by_shapes", attention_by_shapes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="by_shapes"
        )
    return add_adapter(model.requires_grad_(False), LoraSettings(), seed=1).train()


def kept_of_a_token(model: Any) -> float:
    """Bytes that autograd keeps of each token in the layers of a model on the device ``meta``."""
    config, decoder = model.config, model.get_decoder()
    width = config.hidden_size // config.num_attention_heads
    shape = {"device": "meta", "dtype": model.dtype}
    states = torch.empty(1, TOKENS, config.hidden_size, **shape)
    rotations = [torch.empty(1, TOKENS, width, **shape) for _ in range(2)]
    with counting_saved_bytes([*model.parameters(), *model.buffers()]) as kept:
        for layer in decoder.layers:
            states = layer(states, position_embeddings=rotations)
        states = decoder.norm(states)
    return sum(kept.values()) / TOKENS


def table(config: LlamaConfig) -> str:
    """The table in Markdown: what is there for good, and how many tokens fit beside it."""
    model = adapted(config, torch.bfloat16)
    own = dict(model.named_parameters())
    adapter = sum(weight.numel() for weight in own.values() if weight.requires_grad)
    quantised = sum(
        weight.numel()
        for name, weight in own.items()
        if "_proj" in name and not weight.requires_grad
    )
    others = sum(weight.numel() for weight in own.values()) - quantised - adapter
    fixed = NF4_BYTES * quantised + 2 * others + ADAPTER_BYTES * adapter
    of_token = kept_of_a_token(model)
    lines = [
        "| GPU | weights, adapter and AdamW | kept of a token | tokens of a pass |",
        "|---|---|---|---|",
    ]
    for card in CARDS:
        tokens = tokens_within(int(card * 2**30 - fixed), of_token)
        lines.append(
            f"| {card} GiB | {fixed / 2**30:.1f} GiB | {of_token / 2**20:.1f} MiB | {tokens:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
