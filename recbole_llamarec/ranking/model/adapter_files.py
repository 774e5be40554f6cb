"""The files of an adapter: a PEFT directory, read without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_llamarec.checksums import check_sums

_CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def read_adapter(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter, whose files are first compared with their checksums where it has any.

    Returns:
        its description, and its tensors by PEFT's names.

    Raises:
        FileNotFoundError, ValueError: as the functions below, or a file is damaged.
    """
    check_sums(directory)
    return read_config(directory), read_weights(directory)


def read_config(directory: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``.

    Raises:
        FileNotFoundError: it is absent.
        ValueError: it is damaged, or no LoRA adapter's.
    """
    path = directory / _CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} holds no {_CONFIG_FILE}; give the directory of a saved adapter."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(
            f"{path} describes no LoRA adapter (peft_type must be 'LORA'); give the directory of "
            "a LoRA adapter."
        )
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read ``adapter_model.safetensors``; tensors by PEFT's names.

    Raises:
        FileNotFoundError: it is absent.
        ValueError: it is damaged, or a pickled file is in its place.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / WEIGHTS_FILE
    if not path.is_file() and (directory / "adapter_model.bin").is_file():
        raise ValueError(
            f"{directory} holds a pickled adapter_model.bin, which can run code when loaded; "
            "convert it where you trust it: load it with PEFT and call save_pretrained, which "
            f"writes {WEIGHTS_FILE}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {WEIGHTS_FILE}; save the adapter again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); save or copy the adapter again.") from error
