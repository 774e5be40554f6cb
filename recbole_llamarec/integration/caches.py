"""RecBole's caches of data sets and loaders, made anew where they are of other settings or files.

RecBole compares keys of its own; a cache made under another ``item_text_missing``, or of files that
have changed since, is taken without a word.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import recbole.data.utils as data_utils
import torch
from recbole.config import Config
from recbole.utils.argument_list import dataset_arguments

from recbole_llamarec.checksums import sha256_of
from recbole_llamarec.integration import known
from recbole_llamarec.integration.catalogue import number_by, order_in, order_of, tokens_of
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.integration.values import NOWHERE
from recbole_llamarec.keys import shown
from recbole_llamarec.version import __version__

logger = logging.getLogger(__name__)

# What decides what is in a data set, beside its files.
DATASET_KEYS = (
    *dataset_arguments,
    *("seed", "repeatable", "encoding", "numerical_features", "discretization"),
    *("exact_chronology", "item_text_format", "item_text_missing"),
)
# What besides decides how loaders deal out its rows. Torch fixes it when they are made, so that
# RecBole's ``update_config`` changes nothing of it.
LOADER_KEYS = (
    *DATASET_KEYS,
    *("eval_args", "train_batch_size", "eval_batch_size", "train_neg_sample_args", "transform"),
    *("worker", "shuffle", "single_spec"),
)

_recbole_create_dataset = data_utils.create_dataset
_recbole_load_split_dataloaders = data_utils.load_split_dataloaders


def create_dataset(config: Config):
    """RecBole's ``create_dataset``, which takes a cache of the same settings and files alone.

    Where a checkpoint is named as ``retriever_checkpoint``, the data set numbers its items as that
    one does.

    Args:
        config: of the run.

    Returns:
        the data set.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or the data set has other items.
    """
    if config["model"] not in known.MODELS:
        return _recbole_create_dataset(config)
    if config["retriever_checkpoint"] and order_of(config) is None:
        _number_by_retriever(config)
    name = f"{config['dataset']}-LlamaRecDataset.pth"  # as Dataset.save names it
    file = Path(config["dataset_save_path"] or Path(config["checkpoint_dir"], name))
    dataset = _read(file)
    if dataset is not None and _is_current(file, dataset, config, DATASET_KEYS):
        logger.info(f"Load filtered dataset from: [{file}]")
        dataset.config = config  # says how it is split
        return dataset
    with _without(config, "dataset_save_path"):
        return _recbole_create_dataset(config)


def load_split_dataloaders(config: Config):
    """RecBole's ``load_split_dataloaders``, likewise.

    Several processes take no cache: it holds the rows of one of them.

    Args:
        config: of the run.

    Returns:
        loaders of training, validation and test; ``None`` where they have to be made.
    """
    if config["model"] not in known.MODELS:
        return _recbole_load_split_dataloaders(config)
    name = f"{config['dataset']}-for-{config['model']}-dataloader.pth"
    file = Path(config["dataloaders_save_path"] or Path(config["checkpoint_dir"], name))
    cached = _read(file) if config["single_spec"] else None
    if cached is None or not _is_current(file, cached[0][0]._dataset, config, LOADER_KEYS):
        return None
    for loader, state in cached:
        loader.generator = torch.Generator()
        loader.generator.set_state(state)
        loader.sampler.generator = loader.generator
        loader._dataset.config = config
        loader.update_config(config)
    logger.info(f"Load split dataloaders from: [{file}]")
    return tuple(loader for loader, _ in cached)


def _number_by_retriever(config: Config) -> None:
    file = config["retriever_checkpoint"]
    try:
        order = order_in(load_checkpoint(file, map_location="cpu"), file)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"retriever_checkpoint: {error}") from error
    if order is not None:
        number_by(config, replace(order, source=f"retriever_checkpoint: {file!r}"))


def _read(file: Path) -> Any:
    """What a cache holds; ``None`` where there is none, or it cannot be read."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            return pickle.load(opened)
    except Exception as error:  # a pickle that is cut off, or of another version, fails in any way
        logger.warning(f"The cache {str(file)!r} cannot be read ({error}); it is made anew.")
        return None


def _is_current(file: Path, dataset: Any, config: Config, keys: tuple[str, ...]) -> bool:
    """Whether a cached data set is of these settings and files; the log says what differs."""
    differing = _differences(dataset, config, keys)
    if differing:
        logger.warning(
            f"The cache {str(file)!r} is of other settings or data, and is made anew: "
            f"{'; '.join(differing)}."
        )
    return not differing


def _differences(dataset: Any, config: Config, keys: tuple[str, ...]) -> list[str]:
    written = getattr(dataset, "version", None)
    if written != __version__:
        return [f"recbole_llamarec was {written} and is {__version__}"]
    changed = [
        f"{key} was {shown(dataset.config[key])} and is {shown(config[key])}"
        for key in keys
        if dataset.config[key] != config[key]
    ]
    folder = Path(config["data_path"])
    for name, digest in dataset.file_digests.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            changed.append(f"{path} has changed")
    order = order_of(config)
    if order is not None and tokens_of(dataset) != order.tokens:
        changed.append(f"{order.source} numbers its items otherwise")
    return changed


@contextmanager
def _without(config: Config, key: str) -> Iterator[None]:
    """Within, RecBole finds no cache."""
    given = config[key]
    config[key] = NOWHERE
    try:
        yield
    finally:
        config[key] = given
