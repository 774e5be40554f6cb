"""What a run leaves in TensorBoard and in Weights & Biases, and what its report is made from.

The ranker's curves have RecBole's own names, over optimizer steps. The retriever's, which RecBole's
trainer writes over epochs, have the same names in a TensorBoard run of their own,
``<run>/retriever``, and stand under ``retriever/`` in Weights & Biases (see
:func:`recbole_llamarec.integration.configs.logging_stage`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recbole_llamarec.evaluation.table import EvaluationReport
from recbole_llamarec.tuning.curve import TrainingCurve

if TYPE_CHECKING:
    from recbole.utils import WandbLogger
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class Journal:
    """What the trainer records while it works.

    Attributes:
        seconds: wall time of each phase, by name.
        tuning_seconds: wall time of tuning, that of an interrupted run included.
        tuning_samples: samples that the ranker was tuned on, each as often as it was drawn.
        retriever, ranker: training curves; empty where nothing was trained.
        validation: metrics of each stage on the rows that the fusion was fitted on.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    tuning_seconds: float = 0.0
    tuning_samples: int = 0
    retriever: TrainingCurve = field(default_factory=TrainingCurve)
    ranker: TrainingCurve = field(default_factory=TrainingCurve)
    validation: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Record the wall time of what happens within; a phase that is repeated counts once."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


class RunLog:
    """The ranker's tuning and the result of all stages.

    Args:
        tensorboard, wandb: the writers that RecBole's trainer has made; the second one writes
            nothing unless ``log_wandb`` is set.
    """

    def __init__(self, tensorboard: SummaryWriter, wandb: WandbLogger) -> None:
        self.tensorboard, self.wandb = tensorboard, wandb

    def tuning_step(self, step: int, loss: float) -> None:
        """Log the mean loss of an optimizer step's samples, in nats."""
        self.tensorboard.add_scalar("Loss/Train", loss, step)
        self.wandb.log_metrics({"train_loss": loss, "train_step": step}, head="train")

    def validation(self, step: int, score: float, result: Mapping[str, float]) -> None:
        """Log a validation of the ranker: the score that decides, and every metric."""
        self.tensorboard.add_scalar("Vaild_score", score, step)  # as RecBole spells it
        self.wandb.log_metrics({**result, "valid_step": step}, head="valid")

    def report(self, report: EvaluationReport) -> None:
        """Log the tables: as text in TensorBoard, each stage as a summary in Weights & Biases."""
        self.tensorboard.add_text("Result", report.table())
        self.tensorboard.flush()  # its thread dies with the process, and what it holds with it
        for stage in report.stages:
            name = re.sub(r"\W+", "_", stage.name).strip("_")
            self.wandb.log_eval_metrics(stage.metrics, head=f"eval/{name}")
