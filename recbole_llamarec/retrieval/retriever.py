"""The first stage: any of RecBole's sequential recommenders puts the catalogue into an order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from recbole.utils import get_trainer

from recbole_llamarec import distributed
from recbole_llamarec.data.seen import SeenItems, chosen_before, seen_mask
from recbole_llamarec.finite import NotFiniteError
from recbole_llamarec.integration.catalogue import order_in, require_same, tokens_of
from recbole_llamarec.integration.checkpoints import load_checkpoint, torch_loads_inertly
from recbole_llamarec.integration.configs import (
    logging_stage,
    report_retriever_keys,
    retriever_config,
    retriever_loaders,
    sequential_model_class,
)
from recbole_llamarec.integration.interruption import warn_of_interruption
from recbole_llamarec.integration.resume import State, resumable
from recbole_llamarec.keys import shown
from recbole_llamarec.retrieval.candidates import REMEDY, catalogue_scores
from recbole_llamarec.tuning.curve import TrainingCurve

logger = logging.getLogger(__name__)


def build_retriever(config, name: str, overrides: Mapping[str, Any], dataset):
    """An untrained retriever for a run.

    Args:
        config: the run's RecBole ``Config``.
        name: a sequential recommender that RecBole knows.
        overrides: RecBole keys on top of the retriever's defaults.
        dataset: the run's training data set.

    Returns:
        the retriever, an ``nn.Module``, and its ``Config``.

    Raises:
        ValueError: no such retriever, it is not sequential, or an override is no key of it; or it
            cannot be built as its keys say.
    """
    model_class = sequential_model_class(name)
    try:
        derived = retriever_config(config, name, overrides)
        report_retriever_keys(derived, overrides)
        with torch_loads_inertly():
            retriever = model_class(derived, dataset).to(derived["device"])
        retriever.catalogue = tokens_of(dataset)
        return retriever, derived
    except Exception as error:  # RecBole's models check few of their values
        if any(key in str(error) for key in ("retriever_config", "retriever_file")):
            raise
        given = "; ".join(f"{key}: {shown(value)}" for key, value in overrides.items())
        raise ValueError(
            f"retriever: {name} cannot be built with retriever_config: {given or '~'} "
            f"({type(error).__name__}: {error})."
        ) from error


def train_retriever(
    config,
    retriever,
    train_data,
    valid_data,
    file: Path,
    keep_file: bool,
    show_progress: bool,
    log_directory: str,
    seen: SeenItems | None = None,
    callback_fn: Callable[[int, float], None] | None = None,
    saved: Mapping[str, Any] | None = None,
    save: Callable[[State], None] | None = None,
) -> TrainingCurve:
    """Train a retriever by RecBole's trainer of its model and load its best state.

    One without weights to learn, as ``retriever: file``, is left as it is.

    Args:
        config: the retriever's ``Config``.
        retriever: from :func:`build_retriever`.
        train_data: the run's training loader.
        valid_data: the run's validation loader, or ``None``.
        file: where the retriever's checkpoint goes.
        keep_file: whether it stays there after training.
        show_progress: show RecBole's progress bars.
        log_directory: the run's TensorBoard directory; the retriever's is in it.
        seen: items to mask in validation beside each row's history, as the run masks them in its
            evaluation; ``None`` masks nothing.
        callback_fn: called with the epoch and its validation score.
        saved: a state that ``save`` was given in an earlier process, to go on from.
        save: called before each epoch, in every process, with tensors and plain values; see
            :func:`~recbole_llamarec.integration.resume.resumable`.

    Returns:
        loss and validation score of each epoch, those of an earlier process included.

    Raises:
        ValueError: it is to be pre-trained, or RecBole cannot train it on this data.
    """
    if not any(weight.requires_grad for weight in retriever.parameters()):
        return TrainingCurve()
    _check_stage(config, retriever)
    logger.info(f"Stage 1 of 2: training the retriever {config['model']}")
    with logging_stage("retriever", log_directory):
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, retriever)
    trainer.saved_model_file = str(file)
    train, valid = retriever_loaders(config, train_data, valid_data)
    curve = TrainingCurve()

    def record(epoch: int, score: float) -> None:
        curve.scores[epoch] = float(score)
        if callback_fn:
            callback_fn(epoch, score)

    if save is not None:
        write = save
        curve.scores.update(saved["valid_scores"] if saved else {})
        resumable(
            trainer, train, saved, lambda state: write({**state, "valid_scores": {**curve.scores}})
        )
    masking = masking_seen(retriever, seen) if seen is not None else nullcontext()
    with masking, _naming_retriever(config):
        trainer.fit(train, valid, saved=True, show_progress=show_progress, callback_fn=record)
    curve.losses.update({epoch: float(loss) for epoch, loss in trainer.train_loss_dict.items()})
    distributed.barrier()  # the first one writes the file
    load_retriever(retriever, config["model"], file, key="checkpoint_dir")
    if not keep_file:
        distributed.barrier()  # all read it
        if config["local_rank"] == 0:
            file.unlink(missing_ok=True)  # the first process of another machine may share it
    return curve


@contextmanager
def masking_seen(retriever, seen: SeenItems) -> Iterator[None]:
    """Within, the retriever's ``full_sort_predict`` gives items already seen the score -inf.

    RecBole's trainers and evaluators, which know no masking for sequential models, then rank such
    items behind all others.

    Args:
        retriever: a model with ``full_sort_predict``.
        seen: items to mask beside each row's history.
    """
    predict = retriever.full_sort_predict

    def masked(interaction):
        scores = catalogue_scores(predict, interaction)  # [B, N]
        users, histories = interaction[retriever.USER_ID], interaction[retriever.ITEM_SEQ]
        before = chosen_before(interaction)
        last = seen_mask(users, histories, seen, scores.shape[1], before)
        return scores.masked_fill(last, -torch.inf)

    retriever.full_sort_predict = masked
    try:
        yield
    finally:
        del retriever.full_sort_predict


def _check_stage(config, retriever) -> None:
    stage = getattr(retriever, "train_stage", "finetune")
    if stage != "finetune":
        raise ValueError(
            f"retriever_config: train_stage: {stage!r} trains {config['model']} to no retriever. "
            f"Pre-train it with RecBole (run_recbole.py --model={config['model']} --train_stage="
            f"{stage}), and then set train_stage: finetune, and pre_model_path to the file that "
            "RecBole has saved."
        )


@contextmanager
def _naming_retriever(config) -> Iterator[None]:
    """Within, what RecBole's model cannot do with the data or its keys names the retriever."""
    try:
        yield
    except ValueError as error:
        if str(error) != "Training loss is nan":  # RecBole's words
            raise
        message = f"training of the retriever {config['model']}: The loss is NaN. {REMEDY}"
        raise NotFiniteError(message) from error
    except (RuntimeError, IndexError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError) or distributed.is_distributed():
            raise
        raise RuntimeError(
            f"retriever: {config['model']} cannot be trained on this data with its keys "
            f"({type(error).__name__}: {error}). Set those that do not suit the data under "
            "retriever_config, or use another retriever."
        ) from error


def load_retriever(retriever, name: str, file: str | Path, key: str = "retriever_checkpoint"):
    """Load a retriever from a RecBole checkpoint of its model.

    Args:
        retriever: an ``nn.Module`` of the same model; its weights are replaced.
        name: the model's name.
        file: the checkpoint.
        key: the YAML key that names the file, for messages.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is damaged, it is of another model,
            or its items or shapes are of another data set; the message names ``key``.
    """
    try:
        checkpoint = load_checkpoint(file, map_location=next(retriever.parameters()).device)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error
    saved_name = checkpoint["config"].get("model")
    if saved_name != name:
        raise ValueError(
            f"{key}: {str(file)!r} holds a {saved_name}, but retriever is {name!r}. Set retriever: "
            f"{saved_name}, or name a checkpoint of {name}."
        )
    warn_of_interruption(checkpoint, file)
    try:
        require_same(order_in(checkpoint, file), getattr(retriever, "catalogue", None))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    try:
        retriever.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{key}: the weights in {str(file)!r} do not fit this {name}. It was trained on other "
            f"data (or filters), or with another retriever_config: {error}"
        ) from error
    retriever.load_other_parameter(checkpoint.get("other_parameter"))
