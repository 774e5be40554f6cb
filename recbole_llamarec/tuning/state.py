"""What an interrupted run goes on from: files beside its checkpoint, replaced by rename.

    saved/LlamaRec-….resume.pt      the first process: settings, and the state of each phase
    saved/LlamaRec-….scores-0.pt    each process: batches that the language model has scored
    saved/LlamaRec-….lock           held while a process works on them

They hold tensors and plain values alone, with a checksum, and are read with
``torch.load(weights_only=True)``. A run that has been tested removes them.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from recbole_llamarec.checksums import DamagedFileError, sha256_of
from recbole_llamarec.files import (
    PART,
    naming,
    read_tensors,
    remove_leftovers,
    require_writable,
    save_tensors,
)
from recbole_llamarec.version import __version__

logger = logging.getLogger(__name__)

# Keys that change where and how a run works, and none of its figures.
NO_RESULT = frozenset(
    {
        *("resume", "save_every_minutes", "checkpoint_dir", "show_progress", "state", "verbose"),
        *("log_wandb", "device", "gpu_id", "use_gpu", "nproc", "local_rank", "world_size"),
        *(
            "offset",
            "ip",
            "port",
            "group_offset",
            "config_files",
            "single_spec",
            "data_path",
            "saved",
        ),
    }
)
INPUT_FILES = ("retriever_file", "retriever_checkpoint")  # keys whose files' content counts
RESUME, LOCK, ADAPTER = ".resume.pt", ".lock", ".adapter"


class RunState:
    """The state of a run that saves checkpoints, by phase.

    Args:
        stem: path of the run's checkpoint without its ending.
        settings: every key that the result depends on, as text.
        every_minutes: minutes after which :attr:`is_due` is true again.

    Attributes:
        phases: tensors and plain values of ``retriever``, ``tuning`` and ``fusion``.
    """

    def __init__(self, stem: Path, settings: Mapping[str, str], every_minutes: float) -> None:
        self.stem, self.settings = stem, dict(settings)
        self.phases: dict[str, dict[str, Any]] = {}
        self._seconds, self._written = 60 * every_minutes, time.monotonic()
        self._lock = FileLock(f"{stem}{LOCK}", timeout=0)
        with naming(stem.parent, "checkpoint_dir"):
            stem.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()

    @property
    def file(self) -> Path:
        """Where it is written."""
        return Path(f"{self.stem}{RESUME}")

    @property
    def is_due(self) -> bool:
        """Whether the last writing is longer ago than ``save_every_minutes``."""
        return time.monotonic() - self._written >= self._seconds

    def put(self, phase: str, state: dict[str, Any]) -> None:
        """Replace the state of a phase, and write all of them."""
        self.phases[phase] = state
        save_tensors({"settings": self.settings, "phases": self.phases}, self.file)
        self._written = time.monotonic()

    def close(self) -> None:
        """Let another process have the run; a run without a state leaves nothing."""
        if not self.file.is_file():
            Path(f"{self.stem}{LOCK}").unlink(missing_ok=True)
        self._lock.release()

    def remove(self) -> None:
        """Delete all files of the state: the run is complete."""
        _remove_files(self.stem)
        self._lock.release()
        Path(f"{self.stem}{LOCK}").unlink(missing_ok=True)

    @classmethod
    def claim(
        cls, stem: Path, settings: Mapping[str, str], every_minutes: float, resume: Path | None
    ) -> RunState:
        """The state of an interrupted run of these settings, or a new one.

        Args:
            stem: of a new run's checkpoint; its folder is searched.
            settings, every_minutes: as the class takes them.
            resume: checkpoint, or state, of the run to go on with; ``None`` takes the latest one
                of exactly these settings that no other process works on.

        Raises:
            FileNotFoundError, ValueError: ``resume`` has no state, a damaged one, or its settings
                differ; the message names those that do.
            OSError: the folder cannot be written to.
        """
        require_writable(stem.parent, "checkpoint_dir")
        if resume is not None:
            return cls._resumed(_stem_of(resume), settings, every_minutes)
        _remove_litter(stem.parent)
        files = stem.parent.glob(f"LlamaRec-*{RESUME}")
        for file in sorted(files, key=_time_of_writing, reverse=True):
            try:
                return cls._resumed(_stem_of(file), settings, every_minutes)
            except DamagedFileError as reason:
                logger.warning("An interrupted run cannot go on: %s", reason)
            except (ValueError, FileNotFoundError) as reason:
                logger.info("An interrupted run is not taken up: %s", reason)
        for number in itertools.count(1):  # checkpoints are named by the second
            name = stem.name if number == 1 else f"{stem.name}-{number}"
            try:
                if not Path(stem.with_name(f"{name}{RESUME}")).is_file():
                    return cls(stem.with_name(name), settings, every_minutes)
            except Timeout:
                continue
        raise AssertionError("numbers do not end")

    @classmethod
    def _resumed(cls, stem: Path, settings: Mapping[str, str], every_minutes: float) -> RunState:
        file = Path(f"{stem}{RESUME}")
        if not file.is_file():
            raise FileNotFoundError(
                f"resume: {str(stem)!r} has no state to go on from ({file.name} is not there); the "
                "run was completed, or was not interrupted. Leave resume out to start anew."
            )
        written = read_state(file)
        if differing := differences(written["settings"], settings):
            raise ValueError(
                f"resume: the run of {str(file)!r} has other settings: {'; '.join(differing)}. "
                "Give the same settings, or leave resume out to start anew."
            )
        try:
            state = cls(stem, settings, every_minutes)
        except Timeout as error:
            raise ValueError(f"resume: another process works on {str(stem)!r}.") from error
        state.phases = written["phases"]
        _remove_parts(stem)
        logger.info("Going on with the interrupted run %s", stem.name)
        return state


def _time_of_writing(file: Path) -> float:
    """Of a state; one that another process has just removed is the oldest."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_parts(stem: Path) -> None:
    """Delete what a killed process left half-written."""
    for part in stem.parent.glob(f"{stem.name}.*{PART}"):
        part.unlink(missing_ok=True)
    remove_leftovers(Path(f"{stem}{ADAPTER}"))


def _remove_files(stem: Path) -> None:
    """Delete a run's state, and what a killed process left half-written."""
    _remove_parts(stem)
    Path(f"{stem}{RESUME}").unlink(missing_ok=True)
    for scores in stem.parent.glob(f"{stem.name}.scores-*"):
        scores.unlink(missing_ok=True)


def _remove_litter(folder: Path) -> None:
    """Delete what killed runs left that are not at work; what one can go on from stays."""
    for lock_file in folder.glob(f"LlamaRec-*{LOCK}"):
        stem = lock_file.with_name(lock_file.name.removesuffix(LOCK))
        try:
            with FileLock(str(lock_file), timeout=0):
                if Path(f"{stem}{RESUME}").is_file():
                    _remove_parts(stem)
                    continue
                _remove_files(stem)
            lock_file.unlink(missing_ok=True)
        except Timeout:
            continue


def _stem_of(file: Path) -> Path:
    """A run's path without ending, from that of its checkpoint or of its state."""
    return file.with_name(file.name.removesuffix(RESUME).removesuffix(".pth"))


def read_state(file: Path) -> dict[str, Any]:
    """Read a state.

    Raises:
        DamagedFileError: it is damaged or no state.
    """
    try:
        written = read_tensors(file)
        return {"settings": written["settings"], "phases": written["phases"]}
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise DamagedFileError(
            f"The state {str(file)!r} cannot be read: {error}. Restore a copy, or delete it: the "
            "run then starts anew."
        ) from error


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Settings that differ, in words."""
    return [
        f"{key} was {before.get(key, 'not set')} and is {now.get(key, 'not set')}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def result_settings(config: Any, *loaders: Any, card: Any = None) -> dict[str, str]:
    """Everything that a run's result depends on, as text.

    Args:
        config: RecBole's ``Config`` of the run.
        loaders: RecBole's, of the rows that the run reads; ``None`` is none.
        card: of the adapter that ``lora_adapter: auto`` found, an ``AdapterCard``; or ``None``.
    """
    values = {
        key: str(value)
        for key, value in config.final_config_dict.items()
        if key not in NO_RESULT and not key.startswith("wandb")
    }
    digest = hashlib.sha256()
    datasets = [loader.dataset for loader in loaders if loader is not None]
    for dataset in datasets:
        for field in (dataset.uid_field, dataset.iid_field):
            digest.update(np.ascontiguousarray(dataset.inter_feat[field]).tobytes())
        digest.update(b"|")
    for dataset in datasets[:1]:  # what all parts share
        for field in (dataset.uid_field, dataset.iid_field):
            digest.update(repr(dataset.field2id_token[field].tolist()).encode())  # of the ids
        for choices in (dataset.chosen.starts, dataset.chosen.items):  # of the test's rows, too
            digest.update(choices.tobytes())
        digest.update(repr(dataset.item_texts()).encode())
    contents = {f"content of {key}": _content(config[key]) for key in INPUT_FILES if config[key]}
    return {
        **values,
        **contents,
        "data": digest.hexdigest()[:16],
        "adapter found": str(card and hashlib.sha256(card.json().encode()).hexdigest()[:16]),
        "recbole_llamarec": __version__,
    }


def _content(setting: str | Mapping[str, str]) -> str:
    """A digest of the files that a key names; a name that is none's is left out."""
    digest = hashlib.sha256()
    for file in map(Path, [setting] if isinstance(setting, str) else setting.values()):
        if file.is_file():
            digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()[:16]
