"""The files of a run with all its processes: its state, its scored batches, its users' table."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from recbole_llamarec import distributed
from recbole_llamarec.evaluation.users_file import write_users
from recbole_llamarec.files import require_writable
from recbole_llamarec.scoring.language_model import language_model_of
from recbole_llamarec.tuning.score_log import ScoreLog
from recbole_llamarec.tuning.state import RunState

FULL = (errno.ENOSPC, errno.EDQUOT)
OTHER_FILES = 2**24  # bytes: the users' table and the report, which embeds its plotting library


def _n_bytes(model: nn.Module) -> int:
    """Of the weights that are trained."""
    return sum(w.numel() * w.element_size() for w in model.parameters() if w.requires_grad)


class RunFiles:
    """What a run goes on from; nothing where it saves nothing.

    Args:
        checkpoint: where a new run's checkpoint goes.

    Attributes:
        checkpoint: of the run that was taken up, or of the new one.
        phases: what each phase had come to.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.phases: dict[str, dict[str, Any]] = {}
        self._state: RunState | None = None  # of the first process
        self._log: ScoreLog | None = None

    def claim(self, settings: Mapping[str, str], minutes: float, resume: str | None) -> None:
        """Take up the files of an interrupted run of these settings, or begin new ones.

        Args:
            settings: every key that the result depends on, as text.
            minutes: after which states are written at the latest.
            resume: the key ``resume``.

        Raises:
            FileNotFoundError, ValueError: as :meth:`RunState.claim`.
        """
        stem, wanted = self.checkpoint.with_suffix(""), Path(resume) if resume else None
        if distributed.is_first():
            self._state = RunState.claim(stem, settings, minutes, wanted)
            stem, self.phases = self._state.stem, dict(self._state.phases)
        stem, self.phases = distributed.from_first((stem, self.phases))
        self.checkpoint = stem.with_name(f"{stem.name}.pth")
        self._log = ScoreLog(stem, distributed.rank(), distributed.world_size(), minutes)

    def require_space(self, model: Any) -> None:
        """Compare the free space with what the run will write, before anything is trained.

        While the retriever is trained, its checkpoint holds its weights and the optimizer's two
        moments, and the state also the best weights so far; the next state is written beside it.
        While the ranker is tuned, that goes for the adapter.

        Args:
            model: ``LlamaRec``, its language model loaded where it has one.

        Raises:
            OSError: there is too little, or the folder cannot be written to.
        """
        if distributed.is_first():
            n_bytes = OTHER_FILES + (3 + 4 + 4) * _n_bytes(model.retriever)
            if language_model := language_model_of(model.scorers.values()):
                n_bytes += (2 + 4 + 4) * _n_bytes(language_model.ranker.model)
            require_writable(self.checkpoint.parent, "checkpoint_dir", n_bytes)

    @property
    def is_due(self) -> bool:
        """Whether this process is to write the state, for the last one is too old."""
        return self._state is not None and self._state.is_due

    def put(self, phase: str, state: dict[str, Any]) -> None:
        """Write the state of a phase; the first process does."""
        if self._state is not None:
            self._state.put(phase, state)

    def score_log(self, name: str) -> ScoreLog | None:
        """The scored batches of a pass that begins, or goes on."""
        return None if self._log is None else self._log.begin(name)

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Let another process have the run where what happens within fails.

        Raises:
            OSError: also for a full disk that the logs were to be written to, with what to do.
        """
        try:
            yield
        except BaseException as error:
            if self._state is not None:
                self._state.close()
            is_named = isinstance(error.__cause__, OSError)  # by files.naming
            if isinstance(error, OSError) and error.errno in FULL and not is_named:
                raise OSError(
                    error.errno,
                    f"a disk is full ({error}); logs are written to the working folder "
                    f"{str(Path.cwd())!r}. What was saved in {str(self.checkpoint.parent)!r} stays "
                    "as it is. Free space, and give the same command again: it goes on.",
                ) from error
            raise

    def write_users(self, users: pd.DataFrame) -> Path | None:
        """Write the users' table beside the checkpoint, where there is one; the first process does.

        Returns:
            where it is; ``None`` where it was not written.
        """
        if not distributed.is_first() or not self.checkpoint.is_file():
            return None
        file = self.checkpoint.with_suffix(".users.csv")
        write_users(file, users)
        return file

    def remove(self) -> None:
        """Delete what a run goes on from: it is complete."""
        distributed.barrier()
        if self._state is not None:
            self._state.remove()
        self._state, self._log = None, None
