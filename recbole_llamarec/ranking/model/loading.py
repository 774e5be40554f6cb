"""Loading any causal language model and its tokenizer, or finding out before that it cannot be."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recbole_llamarec.ranking.model.embedded import (
    EMBEDDED_MODEL_NAME,
    embedded_model_directory,
    embedded_model_is_at_hand,
    load_gguf,
)
from recbole_llamarec.ranking.model.forward import check_attention
from recbole_llamarec.ranking.model.hardware import (
    auto_dtype,
    import_bitsandbytes,
    prefers_bfloat16,
    quantization_options,
    warn_of_slow_precision,
)
from recbole_llamarec.ranking.model.packed_attention import PACKED
from recbole_llamarec.ranking.model.settings import (
    DTYPES,
    EMBEDDED,
    LanguageModelSettings,
    is_gguf,
)
from recbole_llamarec.ranking.model.states import reads_left_to_right

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def check_language_model(settings: LanguageModelSettings) -> None:
    """Find out before any training whether the language model can be loaded.

    Cheap but in one case: an embedded model that is neither cached nor installed is fetched here,
    so that a missing network shows now. A hub name is not checked.

    Args:
        settings: what to load.

    Raises:
        FileNotFoundError: the path, or the GGUF file in it, does not exist.
        ImportError: 4-bit weights are asked for, and bitsandbytes cannot be imported.
        RuntimeError: the embedded model cannot be obtained.
        ValueError: the directory holds an encoder such as BERT.
    """
    name = settings.name_or_path
    path = Path(name).expanduser()
    if name == EMBEDDED:
        if not embedded_model_is_at_hand(settings.cache_dir):
            embedded_model_directory(settings.cache_dir)
    elif is_gguf(name):
        if not path.is_file():
            raise FileNotFoundError(
                f"llm_name_or_path: {name!r} does not exist; give the path of an existing .gguf "
                "file. A GGUF file inside a hub repository is named with llm_gguf_file."
            )
    elif path.is_dir():
        needed = settings.gguf_file or "config.json"
        if not (path / needed).is_file():
            raise FileNotFoundError(
                f"llm_{'gguf_file' if settings.gguf_file else 'name_or_path'}: {name!r} holds no "
                f"{needed}; give a directory that save_pretrained of transformers has written, "
                "or one with a GGUF file named in llm_gguf_file."
            )
        if not settings.gguf_file and (encoder := _encoder(path / needed)):
            raise ValueError(_no_causal_model(settings, encoder))
    elif _is_clearly_a_path(name):
        raise FileNotFoundError(
            f"llm_name_or_path: {name!r} does not exist; give an existing directory or .gguf "
            "file, a hub name such as org/name, or 'embedded'."
        )
    if settings.quantization:
        import_bitsandbytes(settings.quantization)


def load_language_model(
    settings: LanguageModelSettings, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, frozen and in evaluation mode.

    Args:
        settings: what to load, and how.
        device: where the model goes.

    Returns:
        The model (no parameter requires a gradient) and its tokenizer.

    Raises:
        FileNotFoundError, ImportError, RuntimeError: as :func:`check_language_model`, and where
            transformers finds no model of that name.
        ValueError: transformers cannot load this model in this way, it is no causal language model,
            or it cannot be packed on this device.
    """
    check_attention(settings.attention, device)
    check_language_model(settings)
    warn_of_slow_precision(_dtype(settings, device), device)
    attentions = {"auto": ("sdpa", "eager"), PACKED: ("sdpa", "eager")}
    model: Any
    try:
        model, tokenizer = _load_first(
            attentions.get(settings.attention, (settings.attention,)), settings, device
        )
    except OSError as error:
        raise _not_found(settings, error) from error
    except ValueError as error:
        raise ValueError(
            f"llm_name_or_path: {settings.name_or_path!r} cannot be loaded with llm_attention: "
            f"{settings.attention}: {error} Try llm_attention: eager, which every model has, or "
            "another model."
        ) from error
    # This name goes into the adapter's adapter_config.json.
    embedded = settings.name_or_path == EMBEDDED
    model.name_or_path = EMBEDDED_MODEL_NAME if embedded else settings.name_or_path
    model.config.name_or_path = model.name_or_path
    model.eval().requires_grad_(False)
    if not reads_left_to_right(model):
        raise ValueError(_no_causal_model(settings, type(model).__name__))
    return model, tokenizer


def load_tokenizer(settings: LanguageModelSettings) -> PreTrainedTokenizerBase:
    """Load a language model's tokenizer alone, as :func:`load_language_model` does with its model.

    Raises:
        FileNotFoundError, ImportError, RuntimeError: as :func:`check_language_model`, and where
            transformers finds no tokenizer of that name.
    """
    from transformers import AutoTokenizer

    check_language_model(settings)
    source, gguf_file = _source(settings)
    options = _where(settings) | ({} if gguf_file is None else {"gguf_file": gguf_file})
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise _not_found(settings, error) from error


def _not_found(settings: LanguageModelSettings, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"llm_name_or_path: {settings.name_or_path!r} could not be loaded: {error} Check the "
        "name and the network, or give a local directory, a .gguf file or 'embedded'."
    )


def _is_clearly_a_path(name: str) -> bool:
    """Tell a path from a hub name, which has the form `name` or `org/name`."""
    starts = ("./", "../", ".\\", "..\\", "~")
    return os.path.isabs(name) or name.startswith(starts) or name in (".", "..")


def _encoder(config: Path) -> str | None:
    """Name the class that a model's config.json names, if it is one that fills in masked words."""
    try:
        classes = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError):
        return None  # transformers reports what is wrong
    return next((name for name in classes if str(name).endswith("ForMaskedLM")), None)


def _no_causal_model(settings: LanguageModelSettings, kind: str) -> str:
    return (
        f"llm_name_or_path: {settings.name_or_path!r} is a {kind}, which is no causal language "
        "model: it does not read from left to right. Give one that writes text, such as a Llama, "
        "Qwen or SmolLM model."
    )


def _source(settings: LanguageModelSettings) -> tuple[str, str | None]:
    """Return the directory or hub name for transformers, and the GGUF file in it."""
    if settings.name_or_path == EMBEDDED:
        return str(embedded_model_directory(settings.cache_dir)), None
    path = Path(settings.name_or_path).expanduser()
    if is_gguf(settings.name_or_path):
        return str(path.parent), path.name
    return str(path) if path.is_dir() else settings.name_or_path, settings.gguf_file


def _where(settings: LanguageModelSettings) -> dict[str, str]:
    """What transformers is told of where to look."""
    where = {"revision": settings.revision, "cache_dir": settings.cache_dir}
    return {key: value for key, value in where.items() if value is not None}


def _dtype(settings: LanguageModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    return auto_dtype(device.type, prefers_bfloat16(device))


def _load_first(
    attentions: Sequence[str], settings: LanguageModelSettings, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load with the first of some attention implementations that the model has."""
    source, gguf_file = _source(settings)
    where = _where(settings)
    for attention in attentions:
        options = {"dtype": _dtype(settings, device), "attn_implementation": attention}
        model: Any
        try:
            if gguf_file is None:
                model, tokenizer = _load(source, settings.quantization, device, where, options)
            else:
                model, tokenizer = load_gguf(source, gguf_file, **where, **options)
                model.to(device)
            return model, tokenizer
        except ValueError:
            if attention == attentions[-1]:
                raise
    raise AssertionError("no attention implementation was given")


def _load(
    source: str, quantization: str | None, device: torch.device, where: dict, options: dict
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if quantization:  # transformers leaves the output head unquantised
        options["quantization_config"] = BitsAndBytesConfig(
            **quantization_options(quantization, device.type, prefers_bfloat16(device))
        )
    model = AutoModelForCausalLM.from_pretrained(
        source, device_map={"": device}, **where, **options
    )
    if quantization == "load_in_4bit":
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer at its first forward in
        # evaluation mode for a kernel without gradients, and silently trains nothing afterwards.
        layer: Any
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    return model, tokenizer
