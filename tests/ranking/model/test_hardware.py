import sys

import pytest
import torch

from recbole_llamarec.ranking.model import hardware
from recbole_llamarec.ranking.model.hardware import (
    auto_dtype,
    has_bfloat16,
    import_bitsandbytes,
    quantization_options,
    warn_of_slow_precision,
)

CPU = torch.device("cpu")
INSTRUCTIONS = {
    "bfloat16": "avx512_bf16 or amx_bf16",
    "float16": "avx512_fp16 or amx_fp16",
}


@pytest.mark.parametrize(
    ("device_type", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
    ],
)
def test_the_precision_is_what_the_device_has_instructions_for(device_type, bfloat16, expected):
    assert auto_dtype(device_type, bfloat16) == expected


@pytest.mark.parametrize("feature", [None, "avx512_bf16", "amx_bf16"])
def test_a_cpu_has_bfloat16_by_its_instructions(feature, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "avx2": True})
    assert has_bfloat16(torch.device("cpu")) == (feature is not None)


@pytest.mark.parametrize(
    ("dtype", "features", "warned"),
    [
        (
            torch.bfloat16,
            {"avx2": True},
            "bfloat16",
        ),
        (
            torch.float16,
            {"avx2": True},
            "float16",
        ),
        (torch.bfloat16, {"amx_bf16": True}, None),
        (torch.float16, {"avx512_fp16": True}, None),
        (torch.float32, {"avx2": True}, None),
        (torch.bfloat16, {"architecture": "arm64"}, None),
    ],
)
def test_a_precision_that_the_processor_lacks_is_warned_of(
    dtype, features, warned, monkeypatch, caplog
):
    own = {"architecture": "x86_64"} | features
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: own)
    warn_of_slow_precision(dtype, torch.device("cuda"))
    assert not caplog.messages
    warn_of_slow_precision(dtype, CPU)
    assert len(caplog.messages) == bool(warned)
    if warned:
        wanted = INSTRUCTIONS[warned]
        assert f"llm_dtype: {warned}: this processor has no instructions for it ({wanted})" in (
            caplog.text
        )
        assert "Set llm_dtype to auto or float32" in caplog.text


@pytest.mark.parametrize("supported", [False, True])
def test_a_gpu_has_bfloat16_where_it_need_not_emulate_it(supported, monkeypatch):
    def is_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert has_bfloat16(torch.device("cuda")) == supported


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_outliers_are_kept_in_8_bits_on_a_gpu(device_type):
    options = quantization_options("load_in_8bit", device_type, True)
    assert options.get("llm_int8_threshold") == (0.0 if device_type == "cpu" else None)
    assert transformers_options(options).llm_int8_threshold == options.get("llm_int8_threshold", 6)


@pytest.mark.parametrize(
    ("device_type", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
    ],
)
def test_4_bits_are_computed_in_what_the_device_has(device_type, bfloat16, expected):
    config = transformers_options(quantization_options("load_in_4bit", device_type, bfloat16))
    assert config.bnb_4bit_compute_dtype == expected
    assert config.load_in_4bit and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_quant_type == "nf4"


def transformers_options(options: dict):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options)


@pytest.mark.parametrize("quantization", ["load_in_4bit", "load_in_8bit"])
def test_missing_bitsandbytes_is_reported_with_the_command(quantization, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=f"llm_{quantization}.*pip install bitsandbytes"):
        import_bitsandbytes(quantization)
    monkeypatch.undo()
    hardware.import_bitsandbytes(quantization)
