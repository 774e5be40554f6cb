"""LoRA adapters (Hu et al., arXiv 2106.09685): added, copied, saved and loaded, strictly.

Saved adapters are PEFT directories, so any program that knows PEFT can load them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"

# What LoraSettings covers, and what does not change the adapter's outputs.
_HARMLESS_KEYS = {"r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform"} | {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("peft_version", "inference_mode", "init_lora_weights", "fan_in_fan_out", "loftq_config"),
    *("corda_config", "eva_config", "qalora_group_size", "megatron_config", "megatron_core"),
    "runtime_config",
}

_logger = logging.getLogger(__name__)
# PEFT imports bitsandbytes wherever it is installed, which then warns of a kernel for 4-bit models.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's size and place; each field is the YAML key ``lora_`` + its name.

    Args:
        r: rank of the update, at least 1.
        alpha: scale; the update is multiplied by alpha / r.
        dropout: dropout on the adapter's input while training, in [0, 1).
        target_modules: names of the linear layers that get an adapter.
        layers: indices of the transformer layers that get one, counted from 0; None means all.

    Raises:
        ValueError: naming every invalid key at once.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for key in ("target_modules", "layers"):
            if isinstance(getattr(self, key), list):  # as YAML gives it
                object.__setattr__(self, key, tuple(getattr(self, key)))
        errors = []
        if not _is_int(self.r, 1):
            errors.append(f"lora_r: {self.r!r} must be a whole number of at least 1.")
        if not _is_number(self.alpha) or self.alpha <= 0:
            errors.append(f"lora_alpha: {self.alpha!r} must be a number above 0.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            errors.append(f"lora_dropout: {self.dropout!r} must lie in [0, 1).")
        names = self.target_modules
        if not (isinstance(names, tuple) and names and all(_is_name(name) for name in names)):
            errors.append(
                f"lora_target_modules: {names!r} must be a list of layer names, such as "
                "['q_proj', 'v_proj']."
            )
        layers = self.layers
        if layers is not None and not (
            isinstance(layers, tuple) and layers and all(_is_int(layer, 0) for layer in layers)
        ):
            errors.append(
                f"lora_layers: {layers!r} must be a list of layer numbers counted from 0, or left "
                "out for all layers."
            )
        if errors:
            raise ValueError("\n".join(errors))


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
        ValueError: the model lacks a target module or a layer.
    """
    from peft import LoraConfig, get_peft_model

    _check_targets(model, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        layers_to_transform=None if settings.layers is None else list(settings.layers),
        task_type="CAUSAL_LM",
    )
    was_training = model.training
    # PEFT draws on CPU and then moves the weights, so the CPU's generator is the only one used.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    _compute_in_the_models_precision(wrapped)
    return wrapped.train(was_training)


class _LinearInInputPrecision(nn.Linear):
    """A linear layer whose float32 weights are rounded to the input's precision at each product."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def _compute_in_the_models_precision(model: PeftModel) -> None:
    """Let an adapter with float32 weights compute in the precision of what it is put into.

    PEFT converts activations to float32 and back instead: with an adapter on every linear layer of
    a bfloat16 model on a CPU, ranking then takes about 15 % longer.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            matrices: Any
            for matrices in (layer.lora_A, layer.lora_B):
                for name, linear in matrices.items():
                    rounded = _LinearInInputPrecision(
                        linear.in_features, linear.out_features, bias=False, device="meta"
                    )
                    rounded.weight = linear.weight
                    matrices[name] = rounded


def lora_settings(model: PeftModel) -> LoraSettings:
    """Return the settings of a model's adapter, with which :func:`add_adapter` makes its like.

    Args:
        model: model with an adapter from :func:`add_adapter` or :func:`load_adapter`.

    Returns:
        The settings; target modules in alphabetical order.
    """
    return _described_settings(model.peft_config["default"].to_dict())


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """Copy the adapter's weights.

    Args:
        model: model with an adapter.

    Returns:
        Detached copies on CPU, under PEFT's names (`lora_A` `[r, in]`, `lora_B` `[out, r]`).
    """
    return {name: tensor.detach().cpu().clone() for name, tensor in _views(model).items()}


def load_adapter_state(model: PeftModel, state: dict[str, Tensor]) -> None:
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
            f"The adapter does not fit the model {_name(model)}: {'; '.join(problems[:3])}{more}. "
            "Load the language model and the lora_ settings that it was trained with."
        )
    set_peft_model_state_dict(model, state)


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
        ValueError: no plain LoRA adapter, a pickled one (``.bin``), or one that does not fit.
    """
    directory = Path(directory).expanduser()
    described = _read_config(directory)
    state = _read_weights(directory)
    trained_on = described.get("base_model_name_or_path")
    if trained_on and trained_on != _name(model):
        _logger.warning(
            "The adapter in %s names %s as its base model; it is loaded into %s.",
            *(directory, trained_on, _name(model)),
        )
    wrapped = None
    try:
        wrapped = add_adapter(model, _described_settings(described), seed=0)
        load_adapter_state(wrapped, state)
    except ValueError as error:
        if wrapped is not None:
            wrapped.unload()
        raise ValueError(
            f"The adapter in {directory}, trained on {trained_on}, cannot be loaded into the "
            f"model {_name(model)}: {error}"
        ) from error
    if not trainable:
        wrapped.requires_grad_(False)
    return wrapped


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Write the adapter as a PEFT directory, which appears whole or not at all.

    Args:
        model: model with an adapter.
        directory: made with its parents; an adapter already there is replaced.

    Raises:
        FileExistsError: the directory holds something else, which would be lost.
    """
    directory = Path(directory).expanduser()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    replaced = staging.with_name(staging.name + ".replaced")
    staging.mkdir()
    try:
        # The default of save_embedding_layers would ask the hub for the base model's config.
        model.save_pretrained(str(staging), save_embedding_layers=False)
        if directory.exists():
            foreign = set(os.listdir(directory)) - set(os.listdir(staging))
            if foreign:
                raise FileExistsError(
                    f"{directory} holds {sorted(foreign)}, which are no adapter's files; give a "
                    "new or an empty directory for the adapter."
                )
            directory.rename(replaced)
        staging.rename(directory)
    finally:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _views(model: PeftModel) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    # The default of save_embedding_layers would ask the hub for the base model's config.
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _check_targets(model: Any, settings: LoraSettings) -> None:
    from transformers.pytorch_utils import Conv1D

    linear = [
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    ]
    errors = []
    missing = [
        target
        for target in settings.target_modules
        if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear})
        errors.append(
            f"lora_target_modules: {list(settings.target_modules)}: the model {_name(model)} has "
            f"no linear layer {missing}; it has {known}."
        )
    count = model.config.get_text_config().num_hidden_layers
    beyond = [layer for layer in settings.layers or () if layer >= count]
    if beyond:
        errors.append(
            f"lora_layers: {list(settings.layers or ())}: the model {_name(model)} has no layer "
            f"{beyond}; its layers are 0 to {count - 1}."
        )
    if errors:
        raise ValueError("\n".join(errors))


def _described_settings(described: dict[str, Any]) -> LoraSettings:
    """Translate adapter_config.json, and refuse the variants of LoRA that we cannot repeat."""
    from peft import LoraConfig

    plain = LoraConfig(task_type="CAUSAL_LM").to_dict()
    special = {
        key: value
        for key, value in described.items()
        if key not in _HARMLESS_KEYS and value and value != plain.get(key)
    }
    if described.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        special["init_lora_weights"] = described["init_lora_weights"]  # may change the base model
    targets, layers = described.get("target_modules"), described.get("layers_to_transform")
    if isinstance(targets, str):
        special["target_modules"] = targets
    if special:
        raise ValueError(f"it is no plain LoRA adapter over named layers: {special}.")
    return LoraSettings(
        r=described.get("r", plain["r"]),
        alpha=described.get("lora_alpha", plain["lora_alpha"]),
        dropout=described.get("lora_dropout", plain["lora_dropout"]),
        target_modules=tuple(sorted(targets or ())),
        layers=(layers,) if isinstance(layers, int) else layers,
    )


def _read_config(directory: Path) -> dict[str, Any]:
    if not (directory / _CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {_CONFIG_FILE}; give the directory of a saved adapter."
        )
    try:
        described = json.loads((directory / _CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{directory / _CONFIG_FILE} is no JSON: {error}") from error
    if not isinstance(described, dict) or described.get("peft_type") != "LORA":
        raise ValueError(
            f"{directory / _CONFIG_FILE} describes no LoRA adapter (peft_type must be 'LORA'); "
            "give the directory of a LoRA adapter."
        )
    return described


def _read_weights(directory: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / _WEIGHTS_FILE
    if not path.is_file() and (directory / "adapter_model.bin").is_file():
        raise ValueError(
            f"{directory} holds a pickled adapter_model.bin, which can run code when loaded; "
            "convert it where you trust it: load it with PEFT and call save_pretrained, which "
            f"writes {_WEIGHTS_FILE}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {_WEIGHTS_FILE}; save the adapter again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); save or copy the adapter again.") from error


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
