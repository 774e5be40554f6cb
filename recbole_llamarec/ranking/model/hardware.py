"""Precision of the weights, as the device has it."""

from __future__ import annotations

import importlib
import logging
import math
import time
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear

# What a processor of x86 must have to multiply matrices of a precision at all fast.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
_SLOWER = 1.2  # times float32's time, to be worth a warning
_N_TRIALS = 10  # of which the fastest counts; the first one also compiles

logger = logging.getLogger(__name__)


def auto_dtype(device_type: str, bfloat16: bool) -> torch.dtype:
    """Choose the precision of the weights.

    Args:
        device_type: of the device that the model runs on.
        bfloat16: whether that is what :func:`prefers_bfloat16` says of it.

    Returns:
        bfloat16 where it is; else float16 on a GPU, and float32 on a CPU, which is faster there.
    """
    if bfloat16:
        return torch.bfloat16
    return torch.float32 if device_type == "cpu" else torch.float16


def prefers_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies matrices faster in bfloat16 than in float32.

    A GPU does where it need not emulate it; a CPU where it has instructions, and a trial of some
    30 ms, once in a process, shows that they are faster.
    """
    if device.type == "cpu":
        return _cpu_has(torch.bfloat16) and _cpu_time_in(torch.bfloat16) < 1
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # of the current one
    return True


def _capabilities() -> dict[str, Any]:
    """What the processor can do; older versions of torch do not tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def _cpu_has(dtype: torch.dtype) -> bool:
    """Tell whether the processor has instructions for products of matrices of half precision."""
    return any(map(_capabilities().get, _INSTRUCTIONS[dtype]))


@cache
def _cpu_time_in(dtype: torch.dtype) -> float:
    """Time that a product of matrices takes in a precision, by that in float32.

    Instructions alone do not say: an Intel Xeon without AMX in its virtual machine has AVX-512's
    for bfloat16, and reaches 150 GFLOP/s with them where float32 reaches 270. What other processes
    take is left out: the processor's own time counts, of one thread, which waits for no other.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = {torch.float32: math.inf, dtype: math.inf}
        for _ in range(_N_TRIALS):
            for own, best in seconds.items():
                states, weights = torch.ones(256, 512, dtype=own), torch.ones(512, 512, dtype=own)
                begin = time.thread_time()
                linear(states, weights)
                seconds[own] = min(best, time.thread_time() - begin)
    finally:
        torch.set_num_threads(n_threads)
    return seconds[dtype] / seconds[torch.float32]


def warn_of_slow_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Warn of weights in a precision in which the processor is slower than in float32.

    An AMD EPYC with AVX2 alone multiplies matrices of bfloat16 at 0.5 GFLOP/s and of float16 at
    0.9, where float32 reaches 15 on the same loaded core.

    Args:
        dtype: of the weights.
        device: where they are.
    """
    architecture = _capabilities().get("architecture")
    if device.type != "cpu" or dtype not in _INSTRUCTIONS or architecture != "x86_64":
        return
    if not _cpu_has(dtype):
        needed = " or ".join(_INSTRUCTIONS[dtype])
        reason = f"has no instructions for it ({needed}), and multiplies it many times"
    elif _cpu_time_in(dtype) > _SLOWER:
        reason = "multiplies it"
    else:
        return
    logger.warning(
        "llm_dtype: %s: this processor %s more slowly than float32. Set llm_dtype to auto or "
        "float32.",
        *(str(dtype).removeprefix("torch."), reason),
    )


def quantization_options(quantization: str, device_type: str, bfloat16: bool) -> dict[str, Any]:
    """Choose how bitsandbytes quantises.

    Args:
        quantization: ``load_in_4bit`` or ``load_in_8bit``.
        device_type: of the device that the model runs on.
        bfloat16: whether that is what :func:`prefers_bfloat16` says of it.

    Returns:
        Arguments of ``BitsAndBytesConfig``.
    """
    if quantization == "load_in_4bit":
        return {
            quantization: True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            # On a CPU with AVX2 alone, a layer takes 12 times as long in bfloat16 as in float32,
            # and 58 times backwards.
            "bnb_4bit_compute_dtype": auto_dtype(device_type, bfloat16),
        }
    options: dict[str, Any] = {quantization: True}
    if device_type == "cpu":
        # Activations are 8 bits wide throughout, as outliers cost time. On a GPU bitsandbytes' own
        # threshold stays: models of 7B are wrong without it (Dettmers et al., arXiv 2208.07339).
        options["llm_int8_threshold"] = 0.0
    return options


def import_bitsandbytes(quantization: str) -> None:
    """Import what quantises.

    Raises:
        ImportError: says how to install it.
    """
    # It would say with each product of 8-bit weights that it rounds the activations.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            f"llm_{quantization}: True needs bitsandbytes, which cannot be imported ({error}); "
            f"`pip install bitsandbytes`, or set llm_{quantization} to False."
        ) from error
