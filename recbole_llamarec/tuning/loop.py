"""Tuning of the adapter: a loop over optimizer steps that can stop anywhere and go on.

Samples, dropout and the learning rate depend on the seed and the step alone, so that a loop that
goes on from a saved step ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from recbole.utils import early_stopping
from tqdm import tqdm

from recbole_llamarec import distributed
from recbole_llamarec.finite import naming_stage
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.recomputing import recomputed_layers
from recbole_llamarec.ranking.protocol import Ranker
from recbole_llamarec.tuning.curve import TrainingCurve
from recbole_llamarec.tuning.plan import TuningPlan
from recbole_llamarec.tuning.samples import TuningSamples
from recbole_llamarec.tuning.step import loss_scaler, optimizer_step

Weights = dict[str, torch.Tensor]


class Adapter(Protocol):
    """A scorer whose ranker is tuned."""

    @property
    def ranker(self) -> Ranker: ...
    def adapter_weights(self) -> Weights: ...
    def load_adapter_weights(self, weights: Mapping[str, torch.Tensor]) -> None: ...


@dataclass
class TuningProgress:
    """How far tuning has come.

    Attributes:
        step: optimizer steps done.
        awaits_validation: whether the validation behind ``step`` is still to be done.
        is_complete: whether tuning is over.
        best_score, best_result, best_adapter: of the best validation; ``None`` before the first.
        not_improved: validations since the best one.
        losses: of the steps since the last validation, in nats.
        curve: of all steps and validations.
        seconds: wall time of both, that of an interrupted run included.
    """

    step: int = 0
    awaits_validation: bool = False
    is_complete: bool = False
    best_score: float | None = None
    best_result: dict[str, float] | None = None
    best_adapter: Weights | None = None
    not_improved: int = 0
    losses: list[float] = field(default_factory=list)
    curve: TrainingCurve = field(default_factory=TrainingCurve)
    seconds: float = 0.0

    def state(self, adapter: Weights, **others: dict[str, Any]) -> dict[str, Any]:
        """Tensors and plain values for a file, with the present adapter and others' states."""
        own = {**vars(self), "curve": self.curve.state(), "losses": list(self.losses)}
        return {**own, "adapter": adapter, **others}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TuningProgress:
        """What :meth:`state` has written."""
        names = cls.__dataclass_fields__
        own = {name: state[name] for name in names if name != "curve"}
        return cls(**own, curve=TrainingCurve.from_state(state["curve"]))


class TuningLoop:
    """Tunes the adapter of a ranker.

    Args:
        adapter: holds the ranker.
        samples: draws prompts of rows.
        plan: what is done at each step.
        optimizer: over the adapter's weights.
        budget: tokens of one forward and backward pass.
        validate: gives score and metrics of the ranker as it is, for a step.
        on_step: is told step and loss.
        save: writes a state; called at each validation, and between steps where ``is_due``.
        is_due: whether the last state is too old.
    """

    def __init__(
        self,
        adapter: Adapter,
        samples: TuningSamples,
        plan: TuningPlan,
        optimizer: torch.optim.Optimizer,
        budget: TokenBudget,
        validate: Callable[[int, TuningProgress], tuple[float, dict[str, float]]],
        on_step: Callable[[int, float], None],
        save: Callable[[dict[str, Any]], None],
        is_due: Callable[[], bool],
    ) -> None:
        self.adapter, self.samples, self.plan = adapter, samples, plan
        self.optimizer, self.budget = optimizer, budget
        self.validate, self.on_step, self.save, self.is_due = validate, on_step, save, is_due
        self.scaler = loss_scaler(adapter.ranker.model)

    def run(self, state: Mapping[str, Any] | None, show_progress: bool) -> TuningProgress:
        """Tune to the end and load the best adapter.

        Args:
            state: what ``save`` was given by an interrupted run; ``None`` starts at the beginning.
            show_progress: show a progress bar over samples.
        """
        progress = TuningProgress()
        if state is not None:
            progress = TuningProgress.from_state(state)
            self.adapter.load_adapter_weights(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty where nothing was scaled, as on a CPU
                self.scaler.load_state_dict(state["scaler"])
        batches, n_samples = self.plan.batches, self.plan.n_samples
        options = {"desc": "Tune", "unit": "sample", "ncols": 100, "disable": not show_progress}
        with tqdm(total=n_samples(), initial=n_samples(progress.step), **options) as bar:
            if not batches and not progress.is_complete:
                progress.awaits_validation = self.plan.validates_at(0)
            begin = time.perf_counter() - progress.seconds
            while not progress.is_complete:
                if progress.awaits_validation:
                    self._validate(progress)
                elif progress.step < len(batches):
                    self._step(progress, bar)
                else:
                    progress.is_complete = True
                progress.seconds = time.perf_counter() - begin
        if progress.best_adapter is not None:
            self.adapter.load_adapter_weights(progress.best_adapter)
        self._save(progress)
        return progress

    def _step(self, progress: TuningProgress, bar: tqdm) -> None:
        step = progress.step + 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(step)
        torch.manual_seed(step_seed(self.plan.seed, step, distributed.rank()))  # of dropout
        rows = distributed.share_of(self.plan.batches[progress.step])
        samples = self.samples.draw(rows, step, self.plan.loss.reads_candidates)
        ranker = self.adapter.ranker
        encoded = [
            ranker.encode(history, pool)
            for history, pool in zip(samples.histories, samples.pools, strict=True)
        ]
        recomputing = recomputed_layers(ranker.model) if self.plan.recomputes_layers else None
        with naming_stage(f"tuning step {step}"), recomputing or nullcontext():
            loss = optimizer_step(
                ranker, encoded, samples.targets, self.plan.loss, self.optimizer, self.budget,
                self.plan.clipping, bar.update, self.scaler,
            )  # fmt: skip
        progress.step = step
        progress.losses.append(loss)
        progress.curve.losses[step] = loss
        progress.awaits_validation = self.plan.validates_at(step)
        bar.set_postfix(loss=f"{loss:.4f}")
        self.on_step(step, loss)
        if self.is_due():
            self._save(progress)

    def _validate(self, progress: TuningProgress) -> None:
        step, bigger = progress.step, self.plan.bigger
        score, result = self.validate(step, progress)
        progress.curve.scores[step] = score
        worst = -math.inf if bigger else math.inf
        best = worst if progress.best_score is None else progress.best_score
        best, progress.not_improved, stop, improved = early_stopping(
            score, best, progress.not_improved, max_step=self.plan.stopping_step, bigger=bigger
        )
        progress.best_score = float(best)
        if improved:
            progress.best_result = result
            progress.best_adapter = self.adapter.adapter_weights()
        progress.losses = []
        progress.awaits_validation = False
        progress.is_complete = stop or step == len(self.plan.batches)
        if not progress.is_complete:
            self._save(progress)

    def _save(self, progress: TuningProgress) -> None:
        states = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        self.save(progress.state(self.adapter.adapter_weights(), **states))


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of dropout in one optimizer step of one process."""
    return int(np.random.default_rng([seed, step, rank]).integers(2**63))
