"""Small random models of several architectures."""

from __future__ import annotations

from copy import deepcopy

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

VOCABULARY = 99
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
GEMMA = {**SIZES, "head_dim": 16, "sliding_window": 7}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "gpt2": transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    "gemma2": transformers.Gemma2Config(
        **GEMMA, attn_logit_softcapping=0.5, final_logit_softcapping=5.0
    ),
    "gemma3": transformers.Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", "full_attention"]
    ),
}
OTHERS = {
    "granite": transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
    "cohere": transformers.CohereConfig(**SIZES, eos_token_id=1),
    "gpt_oss": transformers.GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, eos_token_id=1
    ),
    "recurrent_gemma": transformers.RecurrentGemmaConfig(
        **(SIZES | {"num_hidden_layers": 3}), lru_width=32, logits_soft_cap=5.0
    ),
}
MAMBA = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)


def tiny_model(kind: str, std: float | None = 0.5, **options) -> nn.Module:
    """A model in evaluation mode.

    Args:
        kind: a name in ``CONFIGS`` or ``OTHERS``, or ``mamba``.
        std: of its weights; that of the default makes it as far from linear as a trained model.
            None leaves them as transformers draws them.
        options: of ``from_config``, such as ``dtype``.
    """
    torch.manual_seed(0)
    if kind == "mamba":
        return AutoModelForCausalLM.from_config(deepcopy(MAMBA), **options).eval()
    # transformers has no other for these
    attention = "eager" if kind in ("gemma2", "gpt_oss") else "sdpa"
    model = AutoModelForCausalLM.from_config(
        deepcopy((CONFIGS | OTHERS)[kind]), attn_implementation=attention, **options
    )
    for parameter in model.parameters():
        if std is not None and parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    return model.eval()


def with_adapter(model: nn.Module) -> nn.Module:
    """An adapter whose update is not zero, as a fresh one's is."""
    targets = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj"]
    config = LoraConfig(target_modules=targets, init_lora_weights=False)
    return get_peft_model(model, config).eval()
