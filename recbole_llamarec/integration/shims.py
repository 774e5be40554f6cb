"""Functions of RecBole that are replaced in memory, each with its reason.

Each replacement keeps the original that it replaces. The shims of data sets, of
configurations and of checkpoints are in modules of their own.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import sys
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import recbole.quick_start.quick_start as quick_start
import recbole.trainer.hyper_tuning as hyper_tuning_module
import recbole.trainer.trainer as trainer_module
import torch
from recbole.config import Config
from recbole.evaluator.collector import Collector
from recbole.utils import ensure_dir as _recbole_ensure_dir
from recbole.utils import get_tensorboard as _recbole_get_tensorboard
from recbole.utils import init_logger as _recbole_init_logger

from recbole_llamarec import distributed
from recbole_llamarec.files import require_writable
from recbole_llamarec.integration import (
    caches,
    catalogue,
    checkpoints,
    config_shims,
    data_shims,
    dealing,
    known,
)
from recbole_llamarec.integration.values import comes_from_file

_recbole_init_device = Config._init_device
_recbole_map_reduce = trainer_module.Trainer._map_reduce
_recbole_update_internal_config_dict = Config._update_internal_config_dict
_recbole_load_data_and_model = quick_start.load_data_and_model
_recbole_run_recboles = quick_start.run_recboles
_recbole_report = quick_start.tune.report

WORKING_FOLDER = "the working folder, where the logs go"  # RecBole has no key for it


def update_internal_config_dict(self, file):
    """RecBole's reader of default property files, which also reads ours in the same slots.

    A model's file is read right behind RecBole's ``overall.yaml``, and a data set's right behind
    RecBole's for the same data set, so that whatever RecBole ranks above them still wins.
    """
    values = _recbole_update_internal_config_dict(self, file)
    slot = Path(file).name
    if slot == "overall.yaml":
        self.internal_config_dict.update(known.default_settings.get(self.model, {}))
    if self.model not in known.MODELS:
        return values
    recbole_dataset_file = Path(file).with_name(f"{self.dataset}.yaml")
    if slot == "overall.yaml":
        extra = known.properties_file("model", self.model)
    elif slot == recbole_dataset_file.name or (
        slot == "sample.yaml" and not recbole_dataset_file.is_file()
    ):
        extra = known.properties_file("dataset", self.dataset)
    else:
        return values
    if extra.is_file():
        _recbole_update_internal_config_dict(self, str(extra))
    return values


def init_device(self) -> None:
    """RecBole's ``Config._init_device``, with gloo where a spawned process has no GPU.

    RecBole asks for one GPU a process and the nccl back end, whatever the machine has.

    Raises:
        ConnectionError: the processes cannot meet.
    """
    settings = self.final_config_dict
    if "local_rank" not in settings:
        return _recbole_init_device(self)
    with distributed.naming_meeting_point(settings["ip"], settings["port"]):
        if settings["use_gpu"] and torch.cuda.is_available():
            return _recbole_init_device(self)
        settings["gpu_id"] = ""
        torch.distributed.init_process_group(
            backend="gloo",
            rank=settings["local_rank"] + settings["offset"],
            world_size=settings["world_size"],
            init_method=f"tcp://{settings['ip']}:{settings['port']}",
        )
    settings.update(device=torch.device("cpu"), single_spec=False)
    torch.set_num_threads(max(1, torch.get_num_threads() // settings["nproc"]))
    if settings["local_rank"] != 0:
        settings.update(state="error", show_progress=False, verbose=False)


def distributed_data_parallel(module, device_ids=None, **options):
    """``DistributedDataParallel``, which takes no ``device_ids`` for a model on the CPU."""
    on_cpu = next(module.parameters()).device.type == "cpu"
    return torch.nn.parallel.DistributedDataParallel(
        module, device_ids=None if on_cpu else device_ids, **options
    )


def run_recboles(rank, *args):
    """RecBole's worker function under a name in this module: unpickling it imports the plugin."""
    return _recbole_run_recboles(rank, *args)


def ensure_dir(path) -> None:
    """RecBole's ``ensure_dir``, which fails where two processes make a folder at the same time.

    Raises:
        OSError: the folder cannot be made, or a file is in its place.
    """
    require_writable(Path(path), "checkpoint_dir", n_bytes=0)  # to evaluate, nothing is written


def init_logger(config) -> None:
    """RecBole's ``init_logger``, which says where no log can be written.

    A log file that cannot be written any more, as on a full disk, is given up with one line on
    standard error; the run goes on, and the screen shows its log. So it does where there can be no
    file from the start and a checkpoint is read, since what reads one need not write.

    Raises:
        OSError: the folder of logs cannot be made or written to, and a model is to be trained.
    """
    folder = Path("log", config["model"])
    try:
        require_writable(folder, WORKING_FOLDER)
    except OSError as error:
        if not comes_from_file(config):
            raise
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s  %(message)s")
        reason = os.strerror(error.errno or errno.EIO)
        logging.warning(f"There is no file of this log in {str(folder.absolute())!r}: {reason}.")
        return
    _recbole_init_logger(config)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_give_up, handler)  # type: ignore[method-assign]


def _give_up(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.FileHandler.handleError(handler, record)
        return
    logging.getLogger().removeHandler(handler)
    print(f"The log {handler.baseFilename!r} ends here: {error}.", file=sys.stderr)


def get_tensorboard(logger):
    """RecBole's ``get_tensorboard``, likewise.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    require_writable(Path("log_tensorboard"), WORKING_FOLDER)
    return _recbole_get_tensorboard(logger)


def map_reduce(self, result, num_sample):
    """RecBole's ``Trainer._map_reduce``, which takes the mean of all processes in float32.

    Metrics over the rows of all processes, from :func:`get_data_struct`, are the same in each.
    """
    if getattr(self.eval_collector, "n_rows", None) is not None:
        return result
    return _recbole_map_reduce(self, result, num_sample)


def get_data_struct(self):
    """RecBole's ``Collector.get_data_struct``, with the rows of all processes.

    RecBole's fails on counts (``int`` has no ``cpu``). Of several processes each computes metrics
    of its own rows, and RecBole takes their mean: for coverage, diversity and popularity this is
    not the value over all rows, and rows that its sampler repeats count twice for every metric.
    """
    collected = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")
    struct, own = type(self.data_struct)(), {}
    for key, value in list(self.data_struct._data_dict.items()):
        value = value.cpu() if isinstance(value, torch.Tensor) else value
        if key in collected:
            del self.data_struct[key]
            own[key] = value
        else:
            struct.set(key, value)
    n_rows = getattr(self, "n_rows", None)  # of all processes; see ``checkpoints.evaluate``
    for key in sorted(own):
        parts = [own[key]]
        if n_rows is not None:
            parts = distributed.gathered(own[key])
            parts = distributed.without_repeated_rows(parts, n_rows, lambda part: part[:-1])
        struct.set(key, torch.cat(parts))
    return struct


def _shim_ray() -> None:
    """Current Ray takes the metrics of a trial as one dict, RecBole names them one by one.

    Outside of Ray's trials, as under hyperopt, it takes nothing and warns at every call.
    """
    if "metrics" in inspect.signature(_recbole_report).parameters:
        quick_start.tune = types.SimpleNamespace(report=lambda **metrics: _recbole_report(metrics))
    warnings.filterwarnings("ignore", message="`report` is meant to only be called inside")


def _shim_hyper_tuning() -> None:
    """hyperopt >= 0.2.7 draws with ``Generator.integers``; RecBole hands it a ``RandomState``."""
    numpy_for_tuning = types.ModuleType("numpy")
    numpy_for_tuning.__dict__.update(np.__dict__)
    random = types.ModuleType("numpy.random")
    random.__dict__.update(np.random.__dict__)
    random.RandomState = np.random.default_rng  # type: ignore[attr-defined]
    numpy_for_tuning.random = random  # type: ignore[attr-defined]
    hyper_tuning_module.np = numpy_for_tuning


def _replace_everywhere(name: str, original, replacement) -> None:
    """Replace a function in every module of RecBole that has imported it by name."""
    for module_name, module in list(sys.modules.items()):
        is_recboles = module_name.split(".")[0] == "recbole"
        if is_recboles and module.__dict__.get(name) is original:
            setattr(module, name, replacement)


def install() -> None:
    """Install every shim; a second call changes nothing."""
    Config.compatibility_settings(None)  # sets NumPy's old scalar names; unpickling skips it
    # RecBole's SINE, which is imported with its other sequential models, switches autograd's
    # anomaly detection on for the whole process: LRURec's epochs take a third longer with it.
    torch.autograd.set_detect_anomaly(False)
    config_shims.install()
    data_shims.install()
    dealing.install()
    catalogue.install()
    checkpoints.install()
    _shim_ray()
    _shim_hyper_tuning()
    Config._init_device = init_device
    Config._update_internal_config_dict = update_internal_config_dict
    Collector.get_data_struct = get_data_struct
    trainer_module.Trainer._map_reduce = map_reduce
    trainer_module.DistributedDataParallel = distributed_data_parallel
    quick_start.run_recboles = run_recboles
    _replace_everywhere(
        "load_data_and_model", _recbole_load_data_and_model, checkpoints.load_data_and_model
    )
    _replace_everywhere("ensure_dir", _recbole_ensure_dir, ensure_dir)
    _replace_everywhere("init_logger", _recbole_init_logger, init_logger)
    _replace_everywhere("get_tensorboard", _recbole_get_tensorboard, get_tensorboard)
    for name in ("create_dataset", "load_split_dataloaders"):
        _replace_everywhere(name, getattr(caches, f"_recbole_{name}"), getattr(caches, name))
