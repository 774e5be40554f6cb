"""Checkpoints of a training that was interrupted, told apart from those of a finished one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

FINISHED = "finished"  # whether the training has ended; absent where that cannot be told

logger = logging.getLogger(__name__)


def warn_of_interruption(checkpoint: dict[str, Any], file: str | Path) -> None:
    """Say of a checkpoint that its training came to no end, and how far it came.

    RecBole writes a checkpoint whenever the validation is better than before, so that a training
    that was killed leaves one like any other. This package notes in it whether its training has
    ended; of one that RecBole wrote by itself nobody can tell.

    Args:
        checkpoint: from :func:`~recbole_llamarec.integration.checkpoints.load_checkpoint`.
        file: where it is, for the message.
    """
    if checkpoint.get(FINISHED, True):
        return
    config = checkpoint["config"]
    if config.get("model") == "LlamaRec":
        state = "before its fusion was set, so that its order is not that of the finished run"
    else:
        state = (
            f"and holds the best state so far, of epoch {checkpoint['epoch'] + 1} of at most "
            f"{config.get('epochs')}"
        )
    logger.warning(
        f"The training of {str(file)!r} was interrupted {state}. Give the command of that run "
        "again to complete it."
    )
