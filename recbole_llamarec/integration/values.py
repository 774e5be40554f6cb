"""Settings from a file: plain values, never evaluated, never the reader's names and folders."""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from recbole.config import Config
from torch import Tensor

from recbole_llamarec.integration.known import FILE_RETRIEVER, IN_CHECKPOINT

# The machine, the folders and the logs are those of whoever reads a file. Besides, no key that
# ends in one of the endings is taken: RecBole and its models open such files, some as pickles.
READERS_KEYS = {
    *("device", "gpu_id", "use_gpu", "single_spec", "local_rank", "nproc", "world_size", "worker"),
    *("offset", "group_offset", "ip", "port", "save_dataset", "save_dataloaders", "config_files"),
    *("log_wandb", "wandb_project", "tensorboard", "warm_up", "resume", "retriever_checkpoint"),
    *("lora_adapter", "data_path", "checkpoint_dir", "dataset_save_path", "dataloaders_save_path"),
    "llm_http_url",  # where texts and the reader's API key would go
}
READERS_ENDINGS = ("_path", "_dir", "_file", "_folder")
NOT_OF_THE_READER = {"llm_name_or_path", "llm_gguf_file"}  # read as weights and JSON alone
PLAIN_NAME = re.compile(r"\w[\w .+-]*")
IDENTIFIERS = ("model", "teacher")  # RecBole imports the one and evaluates the other
NAMES = ("dataset", "benchmark_filename", "additional_feat_suffix")  # parts of file names
# where RecBole looks for pickles of data sets and loaders, so that it opens none
NOWHERE = os.path.join(os.devnull, "none")


class _LeftOut(enum.Enum):
    VALUE = enum.auto()


LEFT_OUT = _LeftOut.VALUE


def is_plain(value: Any) -> bool:
    """Whether ``torch.load(weights_only=True)`` reads a value: tensors and plain values."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value.keys(), *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def plain(value: Any, device: Any = None) -> Any:
    """Tensors and plain values of a tree; what is neither is left out of its dict or list.

    Args:
        value: any object.
        device: of the tensors; where they are if left out.

    Returns:
        the same of plain types, or ``LEFT_OUT``.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return LEFT_OUT
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list | tuple):
        parts = [part for item in value if (part := plain(item, device)) is not LEFT_OUT]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, Mapping):
        pairs = ((plain(key), plain(part, device)) for key, part in value.items())
        return {k: part for k, part in pairs if k is not LEFT_OUT and part is not LEFT_OUT}
    return LEFT_OUT


@contextmanager
def no_command_line() -> Iterator[None]:
    """Within, a ``Config`` is made without the command line, which overrides everything else."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def config_from_values(model: str, dataset: str, values: Mapping[str, Any]) -> Config:
    """A RecBole ``Config`` from values that are taken as they are.

    RecBole evaluates each text of ``config_dict`` and of the command line as Python. Here texts
    stay texts, the command line is not read, and the GPUs are those that this process sees.

    Args:
        model: a model's name.
        dataset: a data set's name.
        values: values on top of the defaults.

    Returns:
        the ``Config``.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    machine = {} if visible is None else {"gpu_id": (visible,)}
    config = Config.__new__(Config)
    config._convert_config_dict = lambda given: given  # what evaluates
    with no_command_line():
        config.__init__(model=model, dataset=dataset, config_dict={**machine, **values})
    del config._convert_config_dict
    return config


def config_from_file(values: Any, data_path: str | None = None) -> Config:
    """The ``Config`` that a checkpoint's settings describe, on the machine of who reads it.

    Args:
        values: the checkpoint's ``config``.
        data_path: the reader's folder of data sets; RecBole's default if left out.

    Returns:
        the ``Config``. It opens and writes no pickles of data sets.

    Raises:
        ValueError: a name is none, or RecBole cannot use the values.
    """
    taken = settings_of_file(values)
    for key in ("model", "dataset"):
        if key not in taken:
            raise ValueError(f"Its settings name no {key}.")
    negatives = taken.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution") == "none":
        taken["train_neg_sample_args"] = None  # as RecBole wants it from outside
    taken |= {"dataset_save_path": NOWHERE, "dataloaders_save_path": NOWHERE}
    if taken.get("retriever") == FILE_RETRIEVER:
        taken["retriever_file"] = IN_CHECKPOINT
    if data_path is not None:
        taken["data_path"] = data_path
    try:
        config = config_from_values(taken["model"], taken["dataset"], taken)
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError) as error:
        raise ValueError(f"RecBole cannot use its settings ({error}).") from error
    config.external_config_dict = {}  # reported by the run that wrote them
    config.comes_from_file = True
    return config


def comes_from_file(config: Config) -> bool:
    """Whether :func:`config_from_file` has made a ``Config``."""
    return getattr(config, "comes_from_file", False)


def settings_of_file(values: Any) -> dict[str, Any]:
    """The settings of a file that are taken from it.

    Args:
        values: a mapping; its ``retriever_config`` is treated likewise.

    Raises:
        ValueError: there are none, or a name could lead out of its folder.
    """
    if not isinstance(values, Mapping):
        raise ValueError("It has no settings.")
    taken = {}
    for key, value in plain(values).items():
        if key not in NOT_OF_THE_READER:
            if key in READERS_KEYS or str(key).endswith(READERS_ENDINGS):
                continue
            if key == "retriever_config" and value is not None:
                value = settings_of_file(value)
        _check_name(key, value)
        taken[key] = value
    if taken.get("train_stage") == "finetune":
        taken["train_stage"] = "pretrain"  # S3Rec is then built without its pre-trained file
    return taken


def _check_name(key: str, value: Any) -> None:
    if key in IDENTIFIERS:
        is_right = isinstance(value, str) and value.isidentifier()
    elif key in NAMES and value is not None:
        is_several = key != "dataset" and isinstance(value, list | tuple)
        names = value if is_several else [value]
        is_right = all(isinstance(name, str) and PLAIN_NAME.fullmatch(name) for name in names)
    else:
        return
    if not is_right:
        raise ValueError(f"Its {key} is {value!r}, which is no plain name.")
