"""Precision of the weights, as the device has it."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch

# What a processor of x86 must have to multiply matrices of a precision at all fast.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}

logger = logging.getLogger(__name__)


def auto_dtype(device_type: str, bfloat16: bool) -> torch.dtype:
    """Choose the precision of the weights.

    Args:
        device_type: of the device that the model runs on.
        bfloat16: whether that multiplies matrices of bfloat16 in hardware.

    Returns:
        bfloat16 where it does; else float16 on a GPU, and float32 on a CPU, which is faster there.
    """
    if bfloat16:
        return torch.bfloat16
    return torch.float32 if device_type == "cpu" else torch.float16


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cpu":
        return _cpu_multiplies_bfloat16()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # of the current one
    return True


def _cpu_multiplies_bfloat16() -> bool:
    """Tell whether the processor has instructions for products of bfloat16 matrices."""
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in _INSTRUCTIONS[torch.bfloat16])


def warn_of_slow_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Warn of weights in a precision for which the processor has no instructions.

    An AMD EPYC with AVX2 alone multiplies matrices of bfloat16 at 0.5 GFLOP/s and of float16 at
    0.9, where float32 reaches 15 on the same loaded core.

    Args:
        dtype: of the weights.
        device: where they are.
    """
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    needed = _INSTRUCTIONS.get(dtype, ())
    if not needed or features.get("architecture") != "x86_64" or any(map(features.get, needed)):
        return
    name = str(dtype).removeprefix("torch.")
    logger.warning(
        "llm_dtype: %s: this processor has no instructions for it (%s), and multiplies it many "
        "times more slowly than float32. Set llm_dtype to auto or float32.",
        *(name, " or ".join(needed)),
    )


def quantization_options(quantization: str, device_type: str, bfloat16: bool) -> dict[str, Any]:
    """Choose how bitsandbytes quantises.

    Args:
        quantization: ``load_in_4bit`` or ``load_in_8bit``.
        device_type: of the device that the model runs on.
        bfloat16: whether that multiplies matrices of bfloat16 in hardware.

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
