"""RecBole's checkpoints: read without running code from them, and never written by halves."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import recbole.quick_start.quick_start as quick_start
import recbole.trainer.trainer as trainer_module
import torch
from recbole.utils import set_color

from recbole_llamarec.integration import known

# What a checkpoint may name beside classes of RecBole and of this plugin.
TRUSTED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("yaml.loader", "FullLoader"),  # Config keeps the class of its YAML loader
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "scalar"),
    ("_codecs", "encode"),  # how older pickle protocols write a NumPy scalar's bytes
}


class _CheckpointUnpickler(pickle.Unpickler):
    """Unpickles nothing but what a RecBole checkpoint is made of, and registered retrievers."""

    def find_class(self, module: str, name: str):
        """Look up a global, or refuse it."""
        if (module, name) in TRUSTED_GLOBALS:
            return super().find_class(module, name)
        registered = known.registered_classes.get(name)
        if registered is not None and registered.__module__ == module:
            return registered
        root = module.split(".")[0]
        if root in ("recbole", "recbole_llamarec") and "." not in name:
            value = super().find_class(module, name)
            if isinstance(value, type) and value.__module__.split(".")[0] == root:
                return value
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which no RecBole checkpoint needs; load files only from "
            "sources that you trust"
        )


def _checkpoint_pickle_module() -> types.ModuleType:
    """The ``pickle`` module with the restricted unpickler, as ``torch.load`` takes it."""
    module = types.ModuleType("recbole_checkpoint_pickle")
    module.__dict__.update(pickle.__dict__)
    module.Unpickler = _CheckpointUnpickler  # type: ignore[attr-defined]
    module.load = lambda file, **options: _CheckpointUnpickler(file, **options).load()  # type: ignore[attr-defined]
    return module


_torch_load = torch.load


def load_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a RecBole checkpoint without running code from it.

    torch >= 2.6 refuses RecBole's checkpoints (``Weights only load failed``): they pickle the
    ``Config`` object, in a pickle protocol that ``weights_only`` cannot read. This unpickles them
    with an unpickler that knows tensors, NumPy scalars, and classes of RecBole and of this plugin.

    Args:
        path: the file.
        map_location: device of its tensors, as ``torch.load`` takes it.

    Returns:
        what RecBole's ``Trainer._save_checkpoint`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or names objects that a checkpoint has no use for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {str(path)!r}; check the path.")
    try:
        return _torch_load(
            str(path),
            map_location=map_location,
            pickle_module=_checkpoint_pickle_module(),
            weights_only=False,
        )
    except (RuntimeError, EOFError, pickle.UnpicklingError, ImportError, OSError) as error:
        raise ValueError(
            f"The checkpoint {str(path)!r} cannot be read; it is damaged, incomplete or not a "
            f"RecBole checkpoint ({error}). Copy it again, or train anew."
        ) from error


# --- shims of RecBole's reading and writing ----------------------------------------------------

_recbole_evaluate = trainer_module.Trainer.evaluate
_recbole_save_checkpoint = trainer_module.Trainer._save_checkpoint


@contextmanager
def _trusting_recbole_checkpoints() -> Iterator[None]:
    """Within RecBole's own loading functions, ``torch.load`` is :func:`load_checkpoint`."""
    original = torch.load
    torch.load = load_checkpoint  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = original


def _with_checkpoints(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with _trusting_recbole_checkpoints():
            return function(*args, **kwargs)

    return wrapped


resume_checkpoint = _with_checkpoints(trainer_module.Trainer.resume_checkpoint)
load_data_and_model = _with_checkpoints(quick_start.load_data_and_model)


@functools.wraps(_recbole_evaluate)
def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
    """RecBole's ``Trainer.evaluate``, which loads its checkpoint by :func:`load_checkpoint`.

    ``torch.load`` is not swapped for all of it, since models may load weights of their own there.
    """
    if eval_data and load_best_model:
        file = model_file or self.saved_model_file
        checkpoint = load_checkpoint(file, map_location=self.device)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))
        self.logger.info(f"Loading model structure and parameters from {file}")
    return _recbole_evaluate(self, eval_data, load_best_model=False, show_progress=show_progress)


def save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
    """RecBole's ``Trainer._save_checkpoint``, which leaves a whole file or the former one.

    RecBole writes into the file itself, so that a run that is killed leaves a truncated one. Here
    the file is written beside it as ``<file>.part`` and takes its name when it is complete. Of
    several processes the first one of each machine writes, as in RecBole; the unfinished file
    bears its rank, since machines may share the folder. The configuration saved is one that a
    single process can load: loading that of several asks for a process group.
    """
    run_config = self.config
    is_single = run_config["single_spec"]
    if not is_single and run_config["local_rank"] != 0:
        return
    file = str(kwargs.pop("saved_model_file", self.saved_model_file))
    part = f"{file}.part" if is_single else f"{file}.{torch.distributed.get_rank()}.part"
    if not is_single:
        self.config = copy.copy(run_config)
        self.config.final_config_dict = {**run_config.final_config_dict, "single_spec": True}
    try:
        _recbole_save_checkpoint(self, epoch, verbose=False, saved_model_file=part, **kwargs)
        os.replace(part, file)
    finally:
        self.config = run_config
        Path(part).unlink(missing_ok=True)  # where writing failed
    if verbose:
        self.logger.info(set_color("Saving current", "blue") + f": {file}")


def install() -> None:
    """Install the shims of ``Trainer``; a second call changes nothing."""
    trainer_module.Trainer.evaluate = evaluate
    trainer_module.Trainer.resume_checkpoint = resume_checkpoint
    trainer_module.Trainer._save_checkpoint = save_checkpoint
