"""LoRA adapters (Hu et al., arXiv 2106.09685): added, copied, saved and loaded, strictly.

Saved adapters are PEFT directories, so any program that knows PEFT can load them.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recbole_llamarec.files import folder_written_whole
from recbole_llamarec.ranking.model.adapter_files import read_adapter
from recbole_llamarec.ranking.model.lora import LoraSettings, check_targets, model_name

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger(__name__)
# PEFT imports bitsandbytes wherever it is installed, which then warns of a kernel for 4-bit models.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


def base_model(model: nn.Module) -> nn.Module:
    """Return the model itself, or what it is under an adapter, whose layers are inside of it."""
    unwrap = getattr(model, "get_base_model", None)  # only a PeftModel has it
    return model if unwrap is None else unwrap()


def add_adapter(model: nn.Module, settings: LoraSettings, seed: int) -> PeftModel:
    """Put a new LoRA adapter into a frozen model, whose outputs it does not change yet.

    Args:
        model: causal language model; it is changed in place, its mode (train or eval) stays.
        settings: the adapter's size and place.
        seed: the only thing that the initial weights depend on; the global generators of random
            numbers are left as they were.

    Returns:
        The wrapped model; only the adapter's weights require gradients.

    Raises:
        ValueError: the model lacks a target module or a layer, or is narrower than the rank.
    """
    from peft import LoraConfig

    check_targets(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        layers_to_transform=None if settings.layers is None else list(settings.layers),
        task_type="CAUSAL_LM",
    )
    return _wrapped(model, config, seed)


def _wrapped(model: Any, config: LoraConfig, seed: int) -> PeftModel:
    from peft import get_peft_model

    from recbole_llamarec.ranking.model.precision import compute_in_the_models_precision

    was_training = model.training
    # PEFT draws on CPU and then moves the weights, so the CPU's generator is the only one used.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for this attribute by its old name.
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        torch.random.default_generator.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    compute_in_the_models_precision(wrapped)
    return wrapped.train(was_training)


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """Describe a model's adapter, so that :func:`restore_adapter` makes its like.

    Args:
        model: model with an adapter.

    Returns:
        PEFT's configuration in plain values, as ``adapter_config.json`` holds it.
    """
    return json.loads(json.dumps(model.peft_config["default"].to_dict(), default=sorted))


def restore_adapter(
    model: nn.Module,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    trainable: bool = False,
) -> PeftModel:
    """Put an adapter that was described and copied into a model, which it must fit exactly.

    Args:
        model: causal language model; changed in place, and restored if the adapter does not fit.
        config: what :func:`adapter_config` returns.
        state: what :func:`adapter_state` returns.
        trainable: whether the adapter's weights require gradients.

    Returns:
        The wrapped model, in the mode (train or eval) that it had.

    Raises:
        ValueError: no LoRA adapter, one that PEFT cannot make, or one that does not fit.
    """
    try:
        lora = _lora_config(config)
        lora.inference_mode = not trainable
        lora.base_model_name_or_path = None  # the model's own name is put in its place
        lora.megatron_config = None  # with it, PEFT imports the module that megatron_core names
        wrapped = _wrapped(model, lora, seed=0)
    except (AttributeError, KeyError, NotImplementedError, TypeError, re.error) as error:
        raise ValueError(f"PEFT cannot make what its configuration says: {error}.") from error
    try:
        load_adapter_state(wrapped, state)
    except ValueError:
        wrapped.unload()
        raise
    return wrapped.requires_grad_(False) if not trainable else wrapped


def _lora_config(config: Mapping[str, Any]) -> LoraConfig:
    """PEFT's form of what :func:`adapter_config` returns.

    Raises:
        ValueError: no LoRA adapter, or one of whose main values is of no use.
    """
    from peft import LoraConfig, PeftConfig

    lora = PeftConfig.from_peft_type(**config)
    if not isinstance(lora, LoraConfig):
        raise ValueError(f"it is no LoRA adapter, but {config.get('peft_type')}.")
    for name in ("r", "lora_alpha", "lora_dropout"):
        value = getattr(lora, name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"its {name} is {value!r}, which is no finite number.")
    if lora.bias not in ("none", "all", "lora_only"):  # PEFT would have changed the model by then
        raise ValueError(f"its bias is {lora.bias!r}, which must be none, all or lora_only.")
    return lora


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """Copy the adapter's weights.

    Args:
        model: model with an adapter.

    Returns:
        Detached copies on CPU, under PEFT's names (`lora_A` `[r, in]`, `lora_B` `[out, r]`).
    """
    return {name: tensor.detach().cpu().clone() for name, tensor in _views(model).items()}


def load_adapter_state(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Put weights that :func:`adapter_state` has copied into a model with the same adapter.

    Args:
        model: model with an adapter; unchanged when the weights do not fit.
        state: exactly the adapter's tensors, by PEFT's names.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    from peft import set_peft_model_state_dict

    wanted = _views(model)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - state.keys())]
    problems += [f"{name} is unexpected" for name in sorted(state.keys() - wanted.keys())]
    problems += [
        f"{name} has the shape {list(state[name].shape)}, the model's {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"The adapter does not fit the model {model_name(model)}: "
            f"{'; '.join(problems[:3])}{more}. Load the language model and "
            "the lora_ settings that it was trained with."
        )
    set_peft_model_state_dict(model, dict(state))


def load_adapter(model: nn.Module, directory: str | Path, trainable: bool = False) -> PeftModel:
    """Load a LoRA adapter from a PEFT directory, which must fit the model exactly.

    Args:
        model: causal language model; changed in place, and restored if the adapter does not fit.
        directory: local directory with ``adapter_config.json`` and ``adapter_model.safetensors``.
        trainable: whether the adapter's weights require gradients.

    Returns:
        The wrapped model, in the mode (train or eval) that it had.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: no LoRA adapter, a damaged or pickled one (``.bin``), or one that does not fit.
    """
    directory = Path(directory).expanduser()
    config, state = read_adapter(directory)
    trained_on = config.get("base_model_name_or_path")
    if trained_on and trained_on != model_name(model):
        logger.warning(
            "The adapter in %s names %s as its base model; it is loaded into %s.",
            *(directory, trained_on, model_name(model)),
        )
    try:
        return restore_adapter(model, config, state, trainable)
    except ValueError as error:
        raise ValueError(
            f"The adapter in {directory}, trained on {trained_on}, cannot be loaded into the "
            f"model {model_name(model)}: {error}"
        ) from error


def save_adapter(model: Any, directory: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Write the adapter as a PEFT directory, which appears whole or not at all.

    Args:
        model: PEFT's, with an adapter.
        directory: made with its parents; an adapter already there is replaced.
        texts: further files by name, such as its card.

    Raises:
        FileExistsError: the directory holds something else, which would be lost.
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError

    with folder_written_whole(Path(directory).expanduser()) as staging:
        try:
            # The default of save_embedding_layers would ask the hub for the base model's config.
            model.save_pretrained(str(staging), save_embedding_layers=False)
        except SafetensorError as error:  # a full disk, too
            raise OSError(errno.EIO, str(error)) from error
        for name, text in (texts or {}).items():
            (staging / name).write_text(text, encoding="utf-8")


def _views(model: PeftModel) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    # The default of save_embedding_layers would ask the hub for the base model's config.
    return get_peft_model_state_dict(model, save_embedding_layers=False)
