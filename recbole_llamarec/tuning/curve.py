"""How a stage's training went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TrainingCurve:
    """Loss and validation metric of one stage, by step.

    Attributes:
        losses: training loss of each epoch (retriever) or optimizer step (ranker).
        scores: the validation metric, where it was taken.
    """

    losses: dict[int, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    def best(self, bigger: bool) -> tuple[int, float] | None:
        """Step and score of the best validation; ``None`` without any.

        Of equal ones it is the last, whose state RecBole and the tuning loop keep.

        Args:
            bigger: whether a greater score is the better one.
        """
        if not self.scores:
            return None
        choose = max if bigger else min
        return choose(reversed(self.scores.items()), key=lambda item: item[1])

    def mean_losses(self, parts: int = 12) -> dict[int, float]:
        """Mean losses of consecutive parts of the steps, by the last step of each.

        Args:
            parts: at most so many, as equal as can be.
        """
        steps = sorted(self.losses)
        split = np.array_split(steps, min(parts, len(steps))) if steps else []
        return {int(part[-1]): fmean(self.losses[int(step)] for step in part) for part in split}

    def state(self) -> dict[str, Any]:
        """The curve as plain values, for a file."""
        return {"losses": dict(self.losses), "scores": dict(self.scores)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TrainingCurve:
        """What :meth:`state` has written."""
        return cls(dict(state["losses"]), dict(state["scores"]))
