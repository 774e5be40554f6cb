"""Checkpoints: written as data, never by halves; read without running anything of them."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import recbole.quick_start.quick_start as quick_start
import recbole.trainer.trainer as trainer_module
import torch
from recbole.utils import EvaluatorType, set_color

from recbole_llamarec.checksums import check_seal, sealed
from recbole_llamarec.evaluation.metrics import require_items
from recbole_llamarec.files import PART, save_tensors, written_whole
from recbole_llamarec.integration.catalogue import (
    TOKENS,
    number_by,
    order_in,
    require_same,
    tokens_of,
)
from recbole_llamarec.integration.inert import read_pickled
from recbole_llamarec.integration.interruption import FINISHED, warn_of_interruption
from recbole_llamarec.integration.values import config_from_file, is_plain, plain

FORMAT = "recbole-llamarec 1"

logger = logging.getLogger(__name__)
_torch_load = torch.load


def load_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint of this package or of RecBole as data: nothing in it is run.

    This package's checkpoints hold tensors and plain values, which ``weights_only`` reads. RecBole
    pickles its ``Config`` too, and torch >= 2.6 refuses that (``Weights only load failed``): such
    a file is read by :mod:`~recbole_llamarec.integration.inert`.

    Args:
        path: the file.
        map_location: device of its tensors, as ``torch.load`` takes it.

    Returns:
        what RecBole's ``Trainer._save_checkpoint`` writes, its ``config`` as a dict of values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or no checkpoint.
    """
    is_checked = False
    path = Path(path)
    if not os.path.isfile(path):  # without a word where its folder cannot be read
        raise FileNotFoundError(f"There is no checkpoint at {str(path)!r}; check the path.")
    try:
        is_checked = check_seal(path)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                checkpoint = _torch_load(str(path), map_location=map_location, weights_only=True)
        except pickle.UnpicklingError:
            checkpoint = plain(read_pickled(path), map_location)
        if not all(isinstance(checkpoint.get(key), dict) for key in ("config", "state_dict")):
            raise ValueError("it has no config or no state_dict")
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(
            f"The checkpoint {str(path)!r} cannot be read; it is damaged, incomplete or not a "
            f"RecBole checkpoint ({error}). Copy it again, or train anew."
        ) from error
    if "format" in checkpoint and not is_checked:
        logger.warning(
            f"The checkpoint {str(path)!r} is not checked, for it has no checksum: an earlier "
            "version wrote it, or it was written anew by another program, or it is cut off."
        )
    return checkpoint


# --- shims of RecBole's reading and writing ----------------------------------------------------

_recbole_evaluate = trainer_module.Trainer.evaluate
_recbole_fit = trainer_module.Trainer.fit
_recbole_resume_checkpoint = trainer_module.Trainer.resume_checkpoint
_recbole_save_checkpoint = trainer_module.Trainer._save_checkpoint
_recbole_load_data_and_model = quick_start.load_data_and_model


@contextmanager
def torch_loads_inertly() -> Iterator[None]:
    """Within, ``torch.load`` runs nothing: a model of RecBole's reads a file that it was given."""
    with _torch_loads_by(load_checkpoint):
        yield


@contextmanager
def _torch_loads_by(load: Callable[..., Any]) -> Iterator[None]:
    """Within RecBole's own loading functions, ``torch.load`` is ``load``."""
    original = torch.load
    torch.load = load
    try:
        yield
    finally:
        torch.load = original


@functools.wraps(_recbole_resume_checkpoint)
def resume_checkpoint(self, resume_file):
    """RecBole's ``Trainer.resume_checkpoint``, which loads by :func:`load_checkpoint`."""

    def load(file: str | Path, map_location: Any = None) -> dict[str, Any]:
        checkpoint = load_checkpoint(file, map_location)
        self.resumed_order = order_in(checkpoint, file)  # compared when ``fit`` has the data
        return checkpoint

    with _torch_loads_by(load):
        return _recbole_resume_checkpoint(self, resume_file)


def load_data_and_model(model_file: str | Path, data_path: str | Path | None = None):
    """RecBole's ``load_data_and_model``, for a file of anybody.

    Names of folders and of GPUs are not taken from the file; see
    :func:`~recbole_llamarec.integration.values.config_from_file`. The data set numbers its items
    and users as the file does, in whatever order they stand on the disk now.

    Args:
        model_file: the checkpoint.
        data_path: folder of data sets, as the key ``data_path``; RecBole's default (``dataset/``)
            if left out.

    Returns:
        what RecBole's returns.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no such data set in ``data_path``.
        ValueError: the checkpoint is damaged, its settings cannot be used, or the data set has
            other items than it was trained on; says how many.
    """

    def load(file: str | Path) -> dict[str, Any]:
        checkpoint = load_checkpoint(file, map_location="cpu")
        warn_of_interruption(checkpoint, file)
        folder = None if data_path is None else str(data_path)
        try:
            config = config_from_file(checkpoint["config"], folder)
        except ValueError as error:
            raise ValueError(f"The checkpoint {str(file)!r}: {error}") from error
        if not os.path.isdir(config["data_path"]):  # RecBole would fetch it
            raise FileNotFoundError(
                f"The data set {config['dataset']!r} of {str(file)!r} is not at "
                f"{config['data_path']!r}; name the folder that it lies in as data_path."
            )
        number_by(config, order_in(checkpoint, file))
        return {**plain(checkpoint, config["device"]), "config": config}

    with _torch_loads_by(load):
        try:
            return _recbole_load_data_and_model(str(model_file))
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise ValueError(
                f"The weights in {str(model_file)!r} do not fit the data set: it was trained on "
                f"other data, or filters ({error}). Train anew, or give the data it was trained on."
            ) from error


@functools.wraps(_recbole_evaluate)
def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
    """RecBole's ``Trainer.evaluate``, which loads its checkpoint by :func:`load_checkpoint`.

    The collector is told how many rows all processes have, for ``shims.get_data_struct``.

    ``torch.load`` is not swapped for all of it, since models may load weights of their own there.
    """
    if eval_data and load_best_model:
        file = model_file or self.saved_model_file
        checkpoint = load_checkpoint(file, map_location=self.device)
        require_same(order_in(checkpoint, file), tokens_of(eval_data.dataset))
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))
        self.logger.info(f"Loading model structure and parameters from {file}")
    is_full_sort = isinstance(eval_data, trainer_module.FullSortEvalDataLoader)
    self.eval_collector.n_rows = eval_data.sample_size if is_full_sort else None
    return _recbole_evaluate(self, eval_data, load_best_model=False, show_progress=show_progress)


def save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
    """RecBole's ``Trainer._save_checkpoint``, which writes data, and a whole file or none.

    RecBole pickles its ``Config``, and writes into the file itself, so that a run that is killed
    leaves a truncated one. Here the file holds tensors and plain values with a checksum, is written
    beside its name as ``<file>.part``, and takes its name when it is complete. Of several processes
    the first one of each machine writes, as in RecBole.

    Args:
        finished: whether the training has ended, where the trainer knows; by default it has not.
    """
    if not _writes(self):
        return
    file = Path(kwargs.pop("saved_model_file", self.saved_model_file))
    finished = kwargs.pop(FINISHED, False if runs_recboles_loop(self) else None)
    others = self.model.other_parameter() or {}
    # those that are modules stand in the state_dict too
    others = {k: value for k, value in others.items() if not isinstance(value, torch.nn.Module)}
    if is_plain(others):
        state = _state_of(self, epoch, others)
        _save(self, state if finished is None else {**state, FINISHED: finished}, file)
    else:  # sparse matrices of some of RecBole's general recommenders
        with written_whole(file, part=_part_of(self, file)) as part:
            _recbole_save_checkpoint(
                self, epoch, verbose=False, saved_model_file=str(part), **kwargs
            )
            part.write_bytes(sealed(part.read_bytes()))
    if verbose:
        self.logger.info(set_color("Saving current", "blue") + f": {file}")


def _state_of(trainer, epoch: int, others: dict[str, Any]) -> dict[str, Any]:
    """What RecBole saves, as tensors and plain values, and whose rows the weights are."""
    tokens = getattr(trainer.model, "catalogue", None)
    return {
        "format": FORMAT,
        "config": plain(trainer.config.final_config_dict),
        "epoch": int(epoch),
        "cur_step": int(trainer.cur_step),
        "best_valid_score": float(trainer.best_valid_score),
        "state_dict": dict(trainer.model.state_dict()),
        "other_parameter": others,
        "optimizer": plain(trainer.optimizer.state_dict()),
        **({TOKENS: tokens} if tokens else {}),
    }


def _writes(trainer) -> bool:
    return trainer.config["single_spec"] or trainer.config["local_rank"] == 0


def _part_of(trainer, file: Path) -> Path:
    """The unfinished file, which bears the process's rank: machines may share the folder."""
    is_single = trainer.config["single_spec"]
    rank = "" if is_single else f".{torch.distributed.get_rank()}"
    return file.with_name(f"{file.name}{rank}{PART}")


def _save(trainer, state: dict[str, Any], file: Path) -> None:
    save_tensors(state, file, part=_part_of(trainer, file))


def runs_recboles_loop(trainer) -> bool:
    """Whether a trainer's ``fit`` is RecBole's loop over epochs.

    A class that overrides ``fit`` and leaves the loop to RecBole says ``runs_recboles_loop = True``
    in the same class body.
    """
    owner = next(c for c in type(trainer).__mro__ if "fit" in vars(c))
    return owner is trainer_module.Trainer or vars(owner).get("runs_recboles_loop", False)


@functools.wraps(_recbole_fit)
def fit(self, train_data, valid_data=None, verbose=True, saved=True, *args, **kwargs):
    """RecBole's ``Trainer.fit``, which at its end notes in the checkpoint that it has ended.

    It begins with a check of what fails at the first validation.
    """
    self.model.catalogue = tokens_of(train_data.dataset)
    require_same(getattr(self, "resumed_order", None), self.model.catalogue)
    if valid_data and self.config["eval_type"] == EvaluatorType.RANKING:
        require_items(self.config["topk"], train_data.dataset.item_num - 1)
    result = _recbole_fit(self, train_data, valid_data, verbose, saved, *args, **kwargs)
    file = Path(self.saved_model_file)
    if saved and _writes(self) and file.is_file():
        checkpoint = load_checkpoint(file, map_location="cpu")
        if checkpoint.get(FINISHED) is False:
            _save(self, {**checkpoint, FINISHED: True}, file)
    return result


def install() -> None:
    """Install the shims of ``Trainer``; a second call changes nothing."""
    trainer_module.Trainer.evaluate = evaluate
    trainer_module.Trainer.fit = fit
    trainer_module.Trainer.resume_checkpoint = resume_checkpoint
    trainer_module.Trainer._save_checkpoint = save_checkpoint
