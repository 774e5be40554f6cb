import sys
import time

import pytest
import torch

from recbole_llamarec.ranking.model import hardware
from recbole_llamarec.ranking.model.hardware import (
    auto_dtype,
    import_bitsandbytes,
    prefers_bfloat16,
    quantization_options,
    warn_of_slow_precision,
)

CPU = torch.device("cpu")
NO_BFLOAT16 = "has no instructions for it (avx512_bf16 or amx_bf16), and multiplies it many times"
NO_FLOAT16 = "has no instructions for it (avx512_fp16 or amx_fp16), and multiplies it many times"
SLOW = "multiplies it more slowly than float32"


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


@pytest.fixture
def matrix_products(monkeypatch):
    """Stand-ins for products of matrices that take a time by precision; the calls."""

    def take(seconds: dict[torch.dtype, float]) -> list[torch.dtype]:
        calls, clock = [], [0.0]

        def linear(states, weights):
            calls.append(states.dtype)
            clock[0] += seconds[states.dtype] * (9 if len(calls) <= 2 else 1)

        monkeypatch.setattr(hardware, "linear", linear)
        monkeypatch.setattr(hardware.time, "thread_time", lambda: clock[0])
        hardware._cpu_time_in.cache_clear()
        return calls

    yield take
    hardware._cpu_time_in.cache_clear()


@pytest.mark.parametrize("feature", [None, "avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize("is_faster", [False, True])
def test_a_cpu_prefers_bfloat16_where_its_instructions_are_faster(
    feature, is_faster, matrix_products, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "avx2": True})
    calls = matrix_products({torch.float32: 2.0, torch.bfloat16: 1.0 if is_faster else 3.0})
    assert prefers_bfloat16(CPU) == (feature is not None and is_faster)
    n_calls = len(calls)
    assert n_calls == (0 if feature is None else 20)  # without instructions no trial
    prefers_bfloat16(CPU)
    assert len(calls) == n_calls  # once in a process


@pytest.mark.skipif(not hardware._cpu_has(torch.bfloat16), reason="without instructions no trial")
def test_the_trial_takes_less_than_a_second():
    hardware._cpu_time_in.cache_clear()
    begin, n_threads = time.perf_counter(), torch.get_num_threads()
    assert 0.01 < hardware._cpu_time_in(torch.bfloat16) < 100
    assert time.perf_counter() - begin < 1
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize(
    ("dtype", "features", "is_faster", "warned"),
    [
        (torch.bfloat16, {"avx2": True}, True, NO_BFLOAT16),
        (torch.float16, {"avx2": True}, True, NO_FLOAT16),
        (torch.bfloat16, {"avx512_bf16": True}, False, SLOW),
        (torch.float16, {"avx512_fp16": True}, False, SLOW),
        (torch.bfloat16, {"amx_bf16": True}, True, None),
        (torch.float16, {"avx512_fp16": True}, True, None),
        (torch.float32, {"avx2": True}, True, None),
        (torch.bfloat16, {"architecture": "arm64"}, True, None),
    ],
)
def test_a_precision_that_is_slow_on_the_processor_is_warned_of(
    dtype, features, is_faster, warned, matrix_products, monkeypatch, caplog
):
    own = {"architecture": "x86_64"} | features
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: own)
    matrix_products({torch.float32: 2.0, dtype: 1.0 if is_faster else 3.0})
    warn_of_slow_precision(dtype, torch.device("cuda"))
    assert not caplog.messages
    warn_of_slow_precision(dtype, CPU)
    assert len(caplog.messages) == bool(warned)
    if warned:
        name = str(dtype).removeprefix("torch.")
        assert f"llm_dtype: {name}: this processor {warned}" in caplog.text
        assert "Set llm_dtype to auto or float32" in caplog.text


def test_of_a_processor_that_torch_does_not_describe_nothing_is_known(monkeypatch, caplog):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not prefers_bfloat16(CPU)
    for device in (CPU, torch.device("cuda")):
        warn_of_slow_precision(torch.bfloat16, device)
    assert not caplog.messages


@pytest.mark.parametrize("supported", [False, True])
def test_a_gpu_prefers_bfloat16_where_it_need_not_emulate_it(supported, monkeypatch):
    def is_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert prefers_bfloat16(torch.device("cuda")) == supported


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
