"""Precision of the weights, as the device has it."""

from __future__ import annotations

import importlib
from typing import Any

import torch


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
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


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
        no_bfloat16 = device_type != "cpu" and not bfloat16
        return {
            quantization: True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.float16 if no_bfloat16 else torch.bfloat16,
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
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            f"llm_{quantization}: True needs bitsandbytes, which cannot be imported ({error}); "
            f"`pip install bitsandbytes`, or set llm_{quantization} to False."
        ) from error
