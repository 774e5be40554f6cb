"""Batches that the language model has scored, kept so that a pass can go on."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import Tensor

from recbole_llamarec.files import read_tensors, save_tensors

logger = logging.getLogger(__name__)

SCORES = ".scores-{rank}.pt"


class ScoreLog:
    """The batches that the language model has scored in the pass at hand, in their order.

    A pass that was interrupted gives them back one by one; since batches are cut before anything
    is scored, they are the same batches.

    Args:
        stem: path of the run's checkpoint without its ending.
        rank, world_size: of this process; the batches of another number of processes are others.
        every_minutes: minutes after which they are written at the latest.
    """

    def __init__(self, stem: Path, rank: int, world_size: int, every_minutes: float) -> None:
        self.file = Path(f"{stem}{SCORES.format(rank=rank)}")
        self.world_size, self._seconds = world_size, 60 * every_minutes
        self._name, self._scores, self._replayed = "", list[Tensor](), 0
        self._written = time.monotonic()

    def begin(self, name: str) -> ScoreLog:
        """Start a pass: with what is on disk of the same pass, or with nothing."""
        self._name, self._scores, self._replayed = name, [], 0
        if self.file.is_file():
            try:
                written = read_tensors(self.file)
            except Exception as error:  # a damaged file costs time, and nothing else
                logger.warning(
                    "%s cannot be read (%s); its rows are scored again", self.file, error
                )
                return self
            if (written["name"], written["world_size"]) == (name, self.world_size):
                self._scores = written["scores"]
                logger.info("%d scored batches of %s are taken up", len(self._scores), name)
        return self

    def next(self) -> Tensor | None:
        """Scores of the next batch, if they are kept; ``None`` from then on."""
        if self._replayed >= len(self._scores):
            return None
        self._replayed += 1
        return self._scores[self._replayed - 1]

    def add(self, scores: Tensor) -> None:
        """Keep the scores of a batch."""
        self._scores.append(scores.clone())
        self._replayed = len(self._scores)
        if time.monotonic() - self._written >= self._seconds:
            self.write()

    def write(self) -> None:
        """Write what the pass has come to."""
        parts = {"name": self._name, "world_size": self.world_size, "scores": self._scores}
        save_tensors(parts, self.file)
        self._written = time.monotonic()
