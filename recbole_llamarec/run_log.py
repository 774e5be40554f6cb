"""What a run leaves in TensorBoard and in Weights & Biases.

The ranker's curves have RecBole's own names, over optimizer steps. The retriever's, which RecBole's
trainer writes over epochs, have the same names in a TensorBoard run of their own,
``<run>/retriever``, and stand under ``retriever/`` in Weights & Biases (see
:func:`recbole_llamarec.integration.configs.logging_stage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recbole_llamarec.evaluation import EvaluationReport

if TYPE_CHECKING:
    from recbole.utils import WandbLogger
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The ranker's tuning and the result of both stages.

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
        """Log the table of both stages: as text in TensorBoard, as a summary in W&B."""
        self.tensorboard.add_text("Result", report.table())
        self.tensorboard.flush()  # its thread dies with the process, and what it holds with it
        for stage in report.stages():
            self.wandb.log_eval_metrics(stage.metrics, head=f"eval/{stage.key}")
