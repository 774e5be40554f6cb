"""Training by a RecBole trainer that can stop anywhere and go on.

RecBole's ``resume_checkpoint`` restores weights and optimizer at the best epoch and no random
state, so that a run that goes on differs from one that was never stopped. Here the state is that
between two epochs, complete: on a CPU the result equals the uninterrupted run's bit for bit.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer
from torch import Tensor

from recbole_llamarec import distributed
from recbole_llamarec.evaluation.metrics import as_floats
from recbole_llamarec.integration.checkpoints import runs_recboles_loop
from recbole_llamarec.integration.values import is_plain

logger = logging.getLogger(__name__)

State = dict[str, Any]  # tensors and plain values: torch.load(weights_only=True) reads it


def resumable(
    trainer: Trainer,
    train_loader: AbstractDataLoader,
    saved: Mapping[str, Any] | None,
    save: Callable[[State], None],
) -> None:
    """Let the next ``fit`` of a trainer hand out its state before each epoch, and go on from one.

    A trainer is left as it is where a state between epochs does not say all: where its ``fit`` is
    not RecBole's loop (pre-training, several phases), where it has several optimizers, or where the
    model keeps parameters of its own that are no plain values. Its training then starts anew, and
    the log says so. A trainer class that overrides ``fit`` and leaves the loop to RecBole says
    ``runs_recboles_loop = True`` in the same class body.

    Args:
        trainer: made for an untrained model, with its ``saved_model_file`` set. The best state so
            far is written to that file at once.
        train_loader: what ``fit`` will be given.
        saved: a state from an earlier process, or ``None`` to start at the first epoch.
        save: called with the state before each epoch, in every process. The state holds the live
            tensors of model and optimizer: write or copy them before ``save`` returns.
    """
    name = type(trainer.model).__name__
    reason = _not_resumable(trainer)
    if reason:
        logger.info(
            f"The training of {name} cannot go on after an interruption ({reason}); it starts anew."
        )
        return
    train_epoch, save_checkpoint = trainer._train_epoch, trainer._save_checkpoint
    restored, best = saved, None
    if saved is not None:
        best = saved["best"]
        _restore_training(trainer, saved)
        logger.info(f"The training of {name} goes on at epoch {saved['epoch']}.")

    def keep_best(*args: Any, **options: Any) -> None:
        nonlocal best
        best = _copied(_model_state(trainer.model))
        save_checkpoint(*args, **options)

    def epoch_after_saving(fit_loader: Any, epoch: int, *args: Any, **options: Any) -> Any:
        nonlocal restored
        loaders = _loaders(trainer, train_loader)
        if restored is not None:
            _restore_random(trainer.device, loaders, restored)
            restored = None
        save(_training_state(trainer, epoch, loaders, best))
        return train_epoch(fit_loader, epoch, *args, **options)

    trainer._save_checkpoint = keep_best
    trainer._train_epoch = epoch_after_saving


def random_state(device: torch.device) -> State:
    """The state of the global random generators of this process as tensors and plain values.

    Args:
        device: whose generator is included where it is a GPU.
    """
    of_numpy = np.random.get_state(legacy=False)
    keys, position = of_numpy["state"]["key"], of_numpy["state"]["pos"]
    gauss = of_numpy["has_gauss"], of_numpy["gauss"]
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, *gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to what :func:`random_state` returned.

    Args:
        state: from a process that computed on the same kind of device; on another kind the GPU's
            generator stays as it is.
        device: whose generator is set where it is a GPU.
    """
    keys, position, has_gauss, cached = state["numpy"]
    version, internal, gauss_next = state["python"]
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    random.setstate((version, tuple(internal), gauss_next))


def _not_resumable(trainer: Any) -> str | None:
    """Why a state between two epochs does not say all of a training, or ``None`` where it does."""
    if not runs_recboles_loop(trainer):
        return f"{type(trainer).__name__} has a training loop of its own"
    optimizers = [v for v in vars(trainer).values() if isinstance(v, torch.optim.Optimizer)]
    if optimizers != [trainer.optimizer]:
        return "it has several optimizers"
    if not is_plain(trainer.model.other_parameter()):
        return "its other_parameter is neither tensors nor plain values"
    return None


def _training_state(
    trainer: Any, epoch: int, loaders: Mapping[str, Any], best: State | None
) -> State:
    """All that RecBole's loop needs to begin at ``epoch``."""
    result = trainer.best_valid_result
    return {
        "epoch": epoch,
        "model": _model_state(trainer.model),
        "best": best,  # the checkpoint's weights, so that a state does without that file
        "optimizer": trainer.optimizer.state_dict(),
        "cur_step": int(trainer.cur_step),
        "best_valid_score": float(trainer.best_valid_score),
        "best_valid_result": result and as_floats(result),
        "train_loss": dict(trainer.train_loss_dict),
        "random": distributed.gathered(random_state(trainer.device)),
        "loader": {name: loader.generator.get_state() for name, loader in loaders.items()},
    }


def _restore_training(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Set all of a trainer but the random generators, which others use until the first batch."""
    trainer.start_epoch = saved["epoch"]
    trainer.cur_step = saved["cur_step"]
    trainer.best_valid_score = saved["best_valid_score"]
    trainer.best_valid_result = saved["best_valid_result"]
    trainer.train_loss_dict = dict(saved["train_loss"])
    # the optimizer takes tensors over as they are and would write into the caller's
    trainer.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    if saved["best"] is not None:
        _load_model_state(trainer.model, saved["best"], trainer.device)
        trainer._save_checkpoint(saved["epoch"] - 1, verbose=False)
    _load_model_state(trainer.model, saved["model"], trainer.device)


def _restore_random(
    device: torch.device, loaders: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    for name, state in saved["loader"].items():
        loaders[name].generator.set_state(state.cpu())
    set_random_state(saved["random"][distributed.rank() % len(saved["random"])], device)


def _loaders(trainer: Any, train_loader: AbstractDataLoader) -> dict[str, Any]:
    """The loaders whose generators shuffle: ``fit``'s, and those that the trainer made for itself.

    LRURec's trainer passes over windows of the training rows instead of ``fit``'s loader.
    """
    kept = {name: v for name, v in vars(trainer).items() if isinstance(v, AbstractDataLoader)}
    return {"fit": train_loader, **kept}


def _model_state(model: Any) -> State:
    return {"state_dict": model.state_dict(), "other_parameter": model.other_parameter()}


def _load_model_state(model: Any, state: Mapping[str, Any], device: torch.device) -> None:
    model.load_state_dict(state["state_dict"])
    others = _copied(state["other_parameter"])
    for name, value in others.items():
        if isinstance(value, Tensor):
            present = getattr(model, name, None)
            others[name] = value.to(present.device if isinstance(present, Tensor) else device)
    model.load_other_parameter(others)


def _copied(state: State) -> State:
    """A copy that later steps do not write into, its tensors on the CPU."""
    return {
        name: value.detach().cpu().clone()
        if isinstance(value, Tensor)
        else _copied(value)
        if isinstance(value, dict)
        else copy.deepcopy(value)
        for name, value in state.items()
    }
