"""A random two-layer Llama on disk, which tests load as they would load a real one."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from helpers import titles


def write_tiny_llama(folder: Path) -> Path:
    """Fill a directory with a random two-layer Llama and a byte-level BPE tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    labels = [f": {letter}" for letter in string.ascii_letters] * 20  # each becomes one token
    tokenizer.train_from_iterator(
        titles(200) + labels, vocab_size=600, special_tokens=["<|endoftext|>"]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
