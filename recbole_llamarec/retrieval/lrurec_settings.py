"""LRURec's own keys: which values they may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llamarec.keys import Rule, number, one_of, whole
from recbole_llamarec.recbole_keys import wrong_values

# What float32 takes: a modulus nearer to 0 or 1, or a smaller epsilon, has gradients that are NaN.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("embedding_size", "state_size", "inner_size", "n_layers"), whole(1)),
    **dict.fromkeys(("embedding_dropout_prob", "dropout_prob"), number(at_least=0, below=1)),
    "radius_min": number(at_least=0, below=1),
    "radius_max": number(at_least=1e-3, at_most=1 - 1e-6),
    "phase_max": number(at_least=1e-6, at_most=2 * math.pi),
    "layer_norm_eps": number(at_least=1e-30, at_most=1),
    "initializer_range": number(at_least=1e-30, at_most=10),
    "loss_type": one_of("CE"),
    "train_neg_sample_args": Rule(
        "~",
        "nothing (~), since the loss is over all items",
        lambda value: (
            value in (None, "None")
            or (isinstance(value, Mapping) and value.get("distribution") in ("None", "none"))
        ),
    ),
}


@dataclass(frozen=True)
class LRURecSettings:
    """The model's part of RecBole's configuration; properties/model/LRURec.yaml explains the keys.

    Raises:
        ValueError: One message that lists every value out of range.
    """

    embedding_size: int
    state_size: int
    inner_size: int
    n_layers: int
    embedding_dropout_prob: float
    dropout_prob: float
    radius_min: float
    radius_max: float
    phase_max: float
    layer_norm_eps: float
    initializer_range: float
    loss_type: str

    @classmethod
    def from_config(cls, config: Any) -> LRURecSettings:
        """Read the settings from a RecBole ``Config`` or any mapping of the same keys."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    def __post_init__(self) -> None:
        missing = [name for name, value in vars(self).items() if value is None]
        if missing:
            raise ValueError(
                f"LRURec: {', '.join(missing)} not set; load properties/model/LRURec.yaml or set"
                " them in the configuration"
            )
        errors = list(wrong_values(vars(self), RULES).values())
        if not errors and self.radius_min >= self.radius_max:
            errors.append(
                f"radius_min: {self.radius_min!r} must be below radius_max, {self.radius_max!r}."
            )
        if errors:
            raise ValueError("LRURec: " + " ".join(errors))
