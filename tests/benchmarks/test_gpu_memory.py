"""The table of memory by the shapes, against what a CPU really keeps."""

from __future__ import annotations

import gpu_memory
import pytest
import torch
from helpers import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig

from recbole_llamarec.ranking.model.adapter import add_adapter
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.tuning.budget import bytes_of_a_token


@pytest.mark.parametrize("layers", [1, 3])
def test_shapes_tell_what_autograd_keeps(layers):
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
    counted = bytes_of_a_token(add_adapter(model, LoraSettings(), seed=1))
    by_shapes = gpu_memory.kept_of_a_token(gpu_memory.adapted(config, torch.float32))
    assert by_shapes == pytest.approx(counted, rel=0.02)


def test_the_page_has_the_table_that_the_script_prints(capsys):
    gpu_memory.main()
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "gpu.md").read_text()
