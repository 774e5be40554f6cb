"""What tuning does at each step: rows, learning rate, validations."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from recbole.utils.argument_list import training_arguments

from recbole_llamarec.evaluation.metrics import only_rank_metrics
from recbole_llamarec.ranking.protocol import Loss
from recbole_llamarec.scoring.language_model import LanguageModel
from recbole_llamarec.settings import llamarec_keys
from recbole_llamarec.tuning.samples import TuningSamples

logger = logging.getLogger(__name__)

# Keys that an adapter which is not tuned leaves unread; its one validation reads train_eval_rows.
OF_TUNING = {
    *training_arguments,
    *(name for name in llamarec_keys() if name.startswith(("train_", "lora_"))),
} - {"lora_adapter", "train_eval_rows"}


@dataclass(frozen=True)
class TuningPlan:
    """How the adapter is tuned; from RecBole's training keys and the ``train_*`` keys.

    Attributes:
        batches: rows of each optimizer step.
        loss: of each sample.
        learning_rate: before the schedule.
        schedule: ``constant`` or ``cosine``.
        clipping: arguments of torch's ``clip_grad_norm_``; ``None`` does not clip.
        eval_steps: steps between validations; ``None`` validates at the end alone.
        validates: whether there is validation data.
        validates_untuned: whether to validate where there is no step.
        stopping_step: validations without improvement before tuning stops.
        bigger: whether a greater score is the better one.
        seed: of dropout.
        recomputes_layers: whether layers are computed again in a backward pass.
    """

    batches: Sequence[np.ndarray]
    loss: Loss
    learning_rate: float
    schedule: str
    clipping: Mapping[str, Any] | None
    eval_steps: int | None
    validates: bool
    validates_untuned: bool
    stopping_step: int
    bigger: bool
    seed: int
    recomputes_layers: bool = False

    def n_samples(self, n_steps: int | None = None) -> int:
        """Samples of the first steps, or of all."""
        return sum(map(len, self.batches[:n_steps]))

    def validates_at(self, step: int) -> bool:
        """Whether the ranker is validated behind a step."""
        if not self.validates:
            return False
        if not self.batches:
            return self.validates_untuned
        every = self.eval_steps
        at_interval = every is not None and step > 0 and step % every == 0
        return at_interval or step == len(self.batches)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        return self.learning_rate * learning_rate_factor(self.schedule, step, len(self.batches))


def learning_rate_factor(schedule: str, step: int, n_steps: int) -> float:
    """What the learning rate is multiplied by at a step.

    Args:
        schedule: ``constant``, or ``cosine``: a rise over the first 3 % of the steps, then half a
            cosine down to 0 (Loshchilov and Hutter 2017, without restarts).
        step: from 1 to ``n_steps``.
        n_steps: in all.
    """
    if schedule == "constant":
        return 1.0
    rise = max(1, round(0.03 * n_steps))
    if step <= rise:
        return step / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, n_steps - rise)))


def warn_of_keys_without_effect(card: Any, config: Any) -> None:
    """Name the keys of tuning that the user has given, where an adapter is not tuned.

    Args:
        card: of the adapter that ``lora_adapter: auto`` found; ``None`` where there is none.
        config: RecBole's ``Config``.
    """
    given = sorted(OF_TUNING.intersection(config.external_config_dict))
    if card is not None and given:
        logger.warning(
            "lora_adapter: auto takes an adapter that was trained for this run and does not tune "
            "it again, so that these keys have no effect: %s. --lora_adapter=None tunes a new one.",
            ", ".join(given),
        )


def tuning_plan(
    samples: TuningSamples, scorer: LanguageModel, settings: Any, config: Any, validates: bool
) -> TuningPlan:
    """The plan of a run; an adapter that was trained for this run is not tuned again.

    Args:
        samples: of the training part.
        scorer: its ranker knows its losses.
        settings: the run's ``LlamaRecSettings``.
        config: RecBole's ``Config``: its training keys.
        validates: whether there is validation data.
    """
    # Fitting the fusion validates all stages, as far as the metrics are of ranks.
    fusion_validates = settings.rerank_fusion == "auto" and only_rank_metrics(config["metrics"])
    n_epochs = 0 if scorer.card else config["epochs"]
    return TuningPlan(
        batches=samples.batches(n_epochs, config["train_batch_size"]),
        loss=scorer.ranker.losses[settings.train_loss],
        learning_rate=config["learning_rate"],
        schedule=settings.train_schedule,
        clipping=config["clip_grad_norm"],
        eval_steps=settings.train_eval_steps,
        validates=validates,
        validates_untuned=not fusion_validates,
        stopping_step=config["stopping_step"],
        bigger=config["valid_metric_bigger"],
        seed=config["seed"],
        recomputes_layers=settings.train_gradient_checkpointing,
    )
