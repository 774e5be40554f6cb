"""Size and place of a LoRA adapter, and whether a model has that place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from recbole_llamarec.keys import TEXT, check_fields, key, list_of, number, optional, whole


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's size and place; each field is the YAML key ``lora_`` + its name.

    Raises:
        ValueError: naming every invalid key at once.
    """

    r: int = key(8, whole(1), "Rank of its matrices.")
    alpha: int | float = key(
        32, number(above=0, at_most=10_000), "Its output is multiplied by lora_alpha / lora_r."
    )
    dropout: float = key(
        0.05,
        number(at_least=0, below=1),
        "Share of the adapter's inputs that are dropped in training.",
    )
    target_modules: tuple[str, ...] = key(
        ("q_proj", "v_proj"), list_of(TEXT), "Linear modules with an adapter."
    )
    layers: tuple[int, ...] | None = key(
        None, optional(list_of(whole(0))), "Layers with an adapter, counted from 0; ~ is all."
    )

    def __post_init__(self) -> None:
        for name in ("target_modules", "layers"):
            if isinstance(getattr(self, name), list):  # as YAML gives it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self, "lora_")


def check_targets(model: Any, settings: LoraSettings) -> None:
    """Refuse settings that a model has no place for.

    Raises:
        ValueError: names every key at once.
    """
    from transformers.pytorch_utils import Conv1D

    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    name_of, errors = model_name(model), []
    missing = [
        target
        for target in settings.target_modules
        if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear})
        errors.append(
            f"lora_target_modules: {list(settings.target_modules)}: the model {name_of} has "
            f"no linear layer {missing}; it has {known}."
        )
    widths = [
        module.nx if isinstance(module, Conv1D) else module.in_features
        for name, module in linear.items()
        if name.rpartition(".")[2] in settings.target_modules
    ]
    if widths and settings.r > min(widths):
        errors.append(
            f"lora_r: {settings.r} is beyond the width of the model {name_of}, whose layers "
            f"to be adapted have {min(widths)} inputs; set it to at most that."
        )
    count = model.config.get_text_config().num_hidden_layers
    beyond = [layer for layer in settings.layers or () if layer >= count]
    if beyond:
        errors.append(
            f"lora_layers: {list(settings.layers or ())}: the model {name_of} has no layer "
            f"{beyond}; its layers are 0 to {count - 1}."
        )
    if errors:
        raise ValueError("\n".join(errors))


def model_name(model: Any) -> str:
    """What messages call a model."""
    return getattr(model, "name_or_path", "") or type(model).__name__
