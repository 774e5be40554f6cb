"""Second RecBole configurations, loaders and logs, derived from those of a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import recbole.model.sequential_recommender as sequential_recommenders
import recbole.trainer.trainer as trainer_module
import torch
from recbole.config import Config
from recbole.data.transform import construct_transform
from recbole.data.utils import get_dataloader
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.sampler import RepeatableSampler
from recbole.utils import ModelType, WandbLogger, get_model
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)
from torch.utils.tensorboard import SummaryWriter

from recbole_llamarec.integration.values import config_from_values

# What a retriever shares with the run that it is part of; everything else is its own.
SHARED_KEYS = (
    *general_arguments,
    *evaluation_arguments,
    *dataset_arguments,
    *("device", "single_spec", "local_rank", "world_size", "nproc", "offset", "ip", "port"),
    *("worker", "shuffle", "wandb_project", "numerical_features", "eval_type"),
    *("valid_neg_sample_args", "test_neg_sample_args", "encoding", "exact_chronology"),
    "retriever_file",
)
# By those of them that RecBole derives, the key that it derives them from.
DERIVED_FROM = {
    "valid_metric_bigger": "valid_metric",
    "eval_type": "metrics",
    **dict.fromkeys(("valid_neg_sample_args", "test_neg_sample_args"), "eval_args"),
}


def sequential_model_class(name: str) -> type:
    """The class of a sequential recommender that RecBole knows by its name.

    Args:
        name: value of the key ``retriever``.

    Returns:
        the model's class.

    Raises:
        ValueError: there is none, or it is not sequential; the message names the YAML key.
    """
    try:
        model_class = get_model(name)
    except (ValueError, AttributeError, TypeError, ModuleNotFoundError):
        names = ", ".join(sorted(filter(_is_retriever, vars(sequential_recommenders))))
        raise ValueError(
            f"retriever: {name!r} is not a model that RecBole knows. Allowed are its sequential "
            f"recommenders, spelt as their classes: {names}; or file."
        ) from None
    if getattr(model_class, "type", None) != ModelType.SEQUENTIAL or name == "LlamaRec":
        raise ValueError(
            f"retriever: {name!r} is not a sequential retriever; LlamaRec retrieves from a user's "
            "history. Use a sequential recommender such as LRURec, SASRec or GRU4Rec."
        )
    if not _orders_catalogue(model_class):
        raise ValueError(
            f"retriever: {name!r} scores one given item at a time and puts no whole catalogue into "
            "an order, so that it proposes no candidates. Use a sequential recommender such as "
            "LRURec, SASRec or GRU4Rec."
        )
    return model_class


def _is_retriever(name: str) -> bool:
    """Whether a name in RecBole's module of sequential recommenders is that of a retriever."""
    is_class = name[0].isupper() and name != "LlamaRec"
    return is_class and _orders_catalogue(getattr(sequential_recommenders, name))


def _orders_catalogue(model_class: Any) -> bool:
    return model_class.full_sort_predict is not AbstractRecommender.full_sort_predict


def retriever_config(config: Config, model: str, overrides: Mapping[str, Any]) -> Config:
    """A RecBole ``Config`` for a retriever inside a run.

    The retriever keeps RecBole's defaults for training, with ``overrides`` on top; the data, the
    evaluation and the machine are the run's. The command line belongs to the run and is not read
    again, and texts in ``overrides``, which may come from a checkpoint, are not evaluated. Negative
    sampling is off where the retriever's loss is a cross-entropy over all items (RecBole refuses
    the two together, and leaves it to the user to say so).

    Args:
        config: the run's ``Config``.
        model: name of the retriever.
        overrides: value of the key ``retriever_config``.

    Returns:
        the retriever's ``Config``.
    """

    def build(extra: Mapping[str, Any]) -> Config:
        return config_from_values(model, config["dataset"], {**overrides, **extra})

    negatives_are_given = "train_neg_sample_args" in overrides
    derived = build({} if negatives_are_given else {"train_neg_sample_args": None})
    if derived["loss_type"] != "CE" and not negatives_are_given:
        derived = build({})
    for key in SHARED_KEYS:
        if key in config and not {key, DERIVED_FROM.get(key)} & overrides.keys():
            derived[key] = config[key]
    # writes its field names into the configuration, where the model reads them
    construct_transform(derived)
    return derived


def retriever_loaders(config: Config, train_data, valid_data):
    """The run's training and validation data in loaders that suit a retriever.

    Args:
        config: the retriever's ``Config``, from :func:`retriever_config`.
        train_data: the run's training loader.
        valid_data: the run's validation loader, or ``None``.

    Returns:
        a training loader, and a validation loader (``None`` where there is no validation data).
    """
    distribution = config["train_neg_sample_args"]["distribution"]
    sampler = None
    if distribution != "none":
        phases = ["train", "valid", "test"]
        alpha = config["train_neg_sample_args"]["alpha"]
        sampler = RepeatableSampler(phases, train_data._dataset, distribution, alpha)
        sampler = sampler.set_phase("train")
    train = get_dataloader(config, "train")(
        config, train_data._dataset, sampler, shuffle=config["shuffle"]
    )
    if not valid_data:
        return train, None
    return train, loader_like(valid_data, config, valid_data._dataset)


def loader_like(eval_data, config: Config, dataset):
    """A loader of other rows for full-ranking evaluation.

    Args:
        eval_data: a loader whose sampler is taken over.
        config: gives the batch size.
        dataset: the rows.

    Returns:
        RecBole's evaluation loader of ``dataset``.
    """
    return get_dataloader(config, "valid")(config, dataset, eval_data._sampler, shuffle=False)


def random_rows(eval_data, config: Config, n_rows: int | None):
    """A fixed random choice of evaluation rows, as a loader; it depends on the seed alone.

    Args:
        eval_data: RecBole's loader of all rows.
        config: the run's.
        n_rows: most rows; ``None`` takes all.
    """
    dataset = eval_data.dataset
    order = np.random.default_rng(config["seed"]).permutation(len(dataset))
    chosen = torch.from_numpy(np.sort(order[:n_rows]))
    return loader_like(eval_data, config, dataset.copy(dataset.inter_feat[chosen]))


def known_keys(config: Config) -> set[str]:
    """Every key that RecBole itself reads in the run of ``config``, and our defaults."""
    return {
        *general_arguments,
        *training_arguments,
        *evaluation_arguments,
        *dataset_arguments,
        *config.internal_config_dict,
        *("model", "dataset", "config_files", "nproc", "world_size", "ip", "port", "offset"),
        *("group_offset", "local_rank", "encoding", "verbose", "transform"),
    }


def report_retriever_keys(config: Config, overrides: Mapping[str, Any]) -> None:
    """Check that a retriever reads every key of its ``retriever_config``.

    Args:
        config: the retriever's ``Config``.
        overrides: value of the key ``retriever_config``.

    Raises:
        ValueError: names the keys that neither RecBole nor the retriever's property file has.
    """
    keys = known_keys(config)
    unknown = [key for key in overrides if key not in keys]
    if unknown:
        nearest = {key: difflib.get_close_matches(key, keys, n=1) for key in unknown}
        hints = "; ".join(
            f"{key!r}" + (f" (did you mean {match[0]!r}?)" if match else "")
            for key, match in nearest.items()
        )
        raise ValueError(
            f"retriever_config: {config['model']} has no such key: {hints}. Its keys are in "
            f"RecBole's properties/model/{config['model']}.yaml and RecBole's training settings."
        )


class _StageWandbLogger(WandbLogger):
    """RecBole's ``WandbLogger``, with every name below that of a stage."""

    def __init__(self, config, stage: str) -> None:
        self.stage = stage
        super().__init__(config)

    def _set_steps(self) -> None:
        for part in ("train", "valid"):
            names, step = f"{self.stage}/{part}/*", f"{self.stage}/{part}_step"
            self._wandb.define_metric(names, step_metric=step)

    def _add_head_to_metrics(self, metrics, head):
        headed = super()._add_head_to_metrics(metrics, head)
        return {f"{self.stage}/{name}": value for name, value in headed.items()}


@contextmanager
def logging_stage(stage: str, directory: str) -> Iterator[None]:
    """Within, a trainer of RecBole is made that logs as one stage of a run.

    By itself it would write under the names of the run's other stage, and open a second file in
    the run's TensorBoard directory; TensorBoard, while it watches a run, reads on in the newest.

    Args:
        stage: directory and prefix of what it logs.
        directory: the run's TensorBoard directory.
    """
    originals = trainer_module.get_tensorboard, trainer_module.WandbLogger
    trainer_module.get_tensorboard = lambda _: SummaryWriter(str(Path(directory) / stage))
    trainer_module.WandbLogger = lambda config: _StageWandbLogger(config, stage)
    try:
        yield
    finally:
        trainer_module.get_tensorboard, trainer_module.WandbLogger = originals
