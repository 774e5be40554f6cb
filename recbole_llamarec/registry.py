"""Makes the plugin known to RecBole 1.2.1, and RecBole run on current releases of its dependencies.

This is the only module that touches RecBole's internals. It is made of three parts: *shims*, each
with the release that made it necessary; *registration* of models, trainers, data set classes and
default property files; and *retriever configurations*, the one place where a second RecBole
``Config`` is derived from the first. Nothing on disk is patched, and importing twice is harmless.
"""

from __future__ import annotations

import builtins
import copy
import difflib
import functools
import importlib
import inspect
import pickle
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

PACKAGE = Path(__file__).resolve().parent
MODELS = {"LlamaRec": "recbole_llamarec.llamarec", "LRURec": "recbole_llamarec.retrieval.lrurec"}
TRAINERS = {
    "LlamaRec": "recbole_llamarec.trainer",
    "LRURec": "recbole_llamarec.retrieval.lrurec_trainer",
}


def properties_file(kind: str, name: str) -> Path:
    """Path of ``properties/<kind>/<name>.yaml``, in a checkout or in an installed package.

    A wheel carries the folder inside the package; a checkout (and an editable install) has it
    beside the package. The file need not exist.
    """
    installed = PACKAGE / "properties"
    root = installed if installed.is_dir() else PACKAGE.parent / "properties"
    return root / kind / f"{name}.yaml"


# --- shims that must stand before RecBole is imported ------------------------------------------


def _restore_numpy_names() -> None:
    """NumPy 2 removed names that RecBole's ``Config.compatibility_settings`` reads."""
    for removed, current in {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
        "bool8": np.bool_,
    }.items():
        if removed not in np.__dict__:
            setattr(np, removed, current)


def _stub_ray_if_unusable() -> None:
    """``recbole.quick_start`` imports ``ray.tune``, which only hyper-parameter tuning uses.

    Ray is absent on Python 3.12 with RecBole's pin, and ``ray<=2.6.3`` cannot be imported beside
    ``setuptools>=82`` (no ``pkg_resources``). Where it cannot be imported, a stub stands in whose
    ``report`` does nothing, as Ray's own does outside a tuning session.
    """
    try:
        importlib.import_module("ray.tune")
        return
    except Exception:  # a broken Ray raises ImportError, AttributeError or worse
        tune = types.ModuleType("ray.tune")
        tune.report = lambda metrics: None  # type: ignore[attr-defined]
    try:
        ray = importlib.import_module("ray")  # Ray without its tune extra
    except Exception:
        for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
            del sys.modules[name]
        ray = types.ModuleType("ray")
        ray.__path__ = []  # a package, so that `import ray.tune` finds the stub
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})


_restore_numpy_names()
_stub_ray_if_unusable()

import recbole.data.dataset as recbole_datasets  # noqa: E402
import recbole.data.dataset.dataset as dataset_module  # noqa: E402
import recbole.data.dataset.sequential_dataset as sequential_dataset_module  # noqa: E402
import recbole.model.sequential_recommender as sequential_recommenders  # noqa: E402
import recbole.quick_start.quick_start as quick_start  # noqa: E402
import recbole.trainer as recbole_trainers  # noqa: E402
import recbole.trainer.hyper_tuning as hyper_tuning_module  # noqa: E402
import recbole.trainer.trainer as trainer_module  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data.transform import construct_transform  # noqa: E402
from recbole.data.utils import get_dataloader  # noqa: E402
from recbole.evaluator.collector import Collector  # noqa: E402
from recbole.sampler import RepeatableSampler  # noqa: E402
from recbole.utils import FeatureType, ModelType, WandbLogger, get_model  # noqa: E402
from recbole.utils import ensure_dir as recbole_ensure_dir  # noqa: E402
from recbole.utils.argument_list import (  # noqa: E402
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

# RecBole's SINE, which is imported with its other sequential models, switches autograd's anomaly
# detection on for the whole process: LRURec's epochs take a third longer with it.
torch.autograd.set_detect_anomaly(False)

# --- shims: data (pandas 3) --------------------------------------------------------------------


# What pandas.read_csv takes for a missing value by default, from its documentation.
PANDAS_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


def _read_atomic_file(path, *, usecols, **options) -> pd.DataFrame:
    """``pandas.read_csv`` for RecBole's atomic files, with sequence columns kept as written.

    pandas 3 copies on write, so RecBole's chained ``fillna("", inplace=True)`` leaves NaN in empty
    sequences and loading fails. Read as text, they are empty, and titles such as ``NA`` or
    ``None``, which pandas would take for missing, are kept.
    """
    missing = {name: PANDAS_MISSING for name in usecols if not name.endswith("_seq")}
    return pd.read_csv(path, usecols=usecols, na_values=missing, keep_default_na=False, **options)


def _len_of_each(values):
    """``len``, but of each row of a Series: in pandas 3 ``Series.agg(len)`` is the Series' own."""
    if isinstance(values, pd.Series):
        return values.map(builtins.len)
    return builtins.len(values)


def _fill_nan(self) -> None:
    """RecBole's ``Dataset._fill_nan`` without chained in-place calls (no effect in pandas 3).

    Without it the padding item's token features are the smallest int64 and its floats NaN.
    """
    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in feat:
            kind = self.field2type[field]
            if kind == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif kind == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                dtype = np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64
                empty = np.array([], dtype=dtype)
                feat[field] = feat[field].map(
                    lambda value, empty=empty: empty if isinstance(value, float) else value
                )


def _shim_data() -> None:
    # RecBole's chained assignments are replaced below; its tensors never write to pandas' arrays.
    if hasattr(pd.errors, "ChainedAssignmentError"):
        warnings.filterwarnings("ignore", category=pd.errors.ChainedAssignmentError)
    warnings.filterwarnings("ignore", message=".*NumPy array is not writable", module="recbole")
    pandas_for_recbole = types.ModuleType("pandas")
    pandas_for_recbole.__dict__.update(pd.__dict__)
    pandas_for_recbole.read_csv = _read_atomic_file  # type: ignore[attr-defined]
    dataset_module.pd = pandas_for_recbole
    dataset_module.len = _len_of_each
    sequential_dataset_module.len = _len_of_each
    dataset_module.Dataset._fill_nan = _fill_nan


# --- shims: metrics, tuning, checkpoints, processes --------------------------------------------


def _get_data_struct(self):
    """RecBole's ``Collector.get_data_struct``, which fails on counts (``int`` has no ``cpu``)."""
    struct = type(self.data_struct)()
    for key, value in self.data_struct._data_dict.items():
        struct.set(key, value.cpu() if isinstance(value, torch.Tensor) else value)
    for key in ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label"):
        if key in self.data_struct:
            del self.data_struct[key]
    return struct


def _shim_ray() -> None:
    """Current Ray takes the metrics of a trial as one dict, RecBole names them one by one.

    Outside of Ray's trials, as under hyperopt, it takes nothing and warns at every call.
    """
    report = quick_start.tune.report
    if "metrics" in inspect.signature(report).parameters:
        quick_start.tune = types.SimpleNamespace(report=lambda **metrics: report(metrics))
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
        registered = _registered.get(name)
        if registered is not None and registered.__module__ == module:
            return registered
        root = module.split(".")[0]
        if root in ("recbole", "recbole_llamarec") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__.split(".")[0] == root:
                return found
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


def load_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a RecBole checkpoint without running code from it.

    torch >= 2.6 refuses RecBole's checkpoints (``Weights only load failed``): they pickle the
    ``Config`` object, in a pickle protocol that ``weights_only`` cannot read. This unpickles them
    with an unpickler that knows tensors, NumPy scalars, and classes of RecBole and of this plugin.

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


_torch_load = torch.load


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


def _evaluate_with_checkpoints(evaluate):
    """``Trainer.evaluate``, which loads its checkpoint by :func:`load_checkpoint`.

    ``torch.load`` is not swapped for all of it, since models may load weights of their own there.
    """

    @functools.wraps(evaluate)
    def wrapped(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        if eval_data and load_best_model:
            file = model_file or self.saved_model_file
            checkpoint = load_checkpoint(file, map_location=self.device)
            self.model.load_state_dict(checkpoint["state_dict"])
            self.model.load_other_parameter(checkpoint.get("other_parameter"))
            self.logger.info(f"Loading model structure and parameters from {file}")
        return evaluate(self, eval_data, load_best_model=False, show_progress=show_progress)

    return wrapped


def _save_checkpoint(self, epoch, verbose=True, **kwargs):
    """RecBole's ``Trainer._save_checkpoint``, with a configuration that one process can load.

    RecBole saves that of several processes as it is; loading it asks for a process group.
    """
    run_config = self.config
    if run_config["single_spec"]:
        return _recbole_save_checkpoint(self, epoch, verbose=verbose, **kwargs)
    if run_config["local_rank"] != 0:
        return None
    self.config = copy.copy(run_config)
    self.config.final_config_dict = {**run_config.final_config_dict, "single_spec": True}
    try:
        return _recbole_save_checkpoint(self, epoch, verbose=verbose, **kwargs)
    finally:
        self.config = run_config


def _init_device(self) -> None:
    """RecBole's ``Config._init_device``, with gloo where a spawned process has no GPU.

    RecBole asks for one GPU a process and the nccl back end, whatever the machine has.
    """
    settings = self.final_config_dict
    if "local_rank" not in settings or (settings["use_gpu"] and torch.cuda.is_available()):
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


def _ensure_dir(path) -> None:
    """RecBole's ``ensure_dir``, which fails where two processes make a folder at the same time."""
    Path(path).mkdir(parents=True, exist_ok=True)


def _replace_everywhere(name: str, original, replacement) -> None:
    """Replace a function in every module of RecBole that has imported it by name."""
    for module_name, module in list(sys.modules.items()):
        is_recboles = module_name.split(".")[0] == "recbole"
        if is_recboles and module.__dict__.get(name) is original:
            setattr(module, name, replacement)


def _distributed(module, device_ids=None, **options):
    """``DistributedDataParallel``, which takes no ``device_ids`` for a model on the CPU."""
    on_cpu = next(module.parameters()).device.type == "cpu"
    return torch.nn.parallel.DistributedDataParallel(
        module, device_ids=None if on_cpu else device_ids, **options
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


def run_recboles(rank, *args):
    """RecBole's worker function under a name in this module: unpickling it imports the plugin."""
    return _recbole_run_recboles(rank, *args)


# --- registration ------------------------------------------------------------------------------


# Retrievers of other packages and their default settings, by name.
_registered: dict[str, type] = {}
_default_settings: dict[str, Mapping[str, Any]] = {}


def _update_internal_config_dict(self, file):
    """RecBole's reader of default property files, which also reads ours in the same slots."""
    values = _recbole_update_internal_config_dict(self, file)
    slot = Path(file).name
    if slot == "overall.yaml":
        self.internal_config_dict.update(_default_settings.get(self.model, {}))
    if self.model not in MODELS:
        return values
    recbole_dataset_file = Path(file).with_name(f"{self.dataset}.yaml")
    if slot == "overall.yaml":
        extra = properties_file("model", self.model)
    elif slot == recbole_dataset_file.name or (
        slot == "sample.yaml" and not recbole_dataset_file.is_file()
    ):
        extra = properties_file("dataset", self.dataset)
    else:
        return values
    if extra.is_file():
        _recbole_update_internal_config_dict(self, str(extra))
    return values


def _make_known(model_class: type) -> None:
    """Put a model where RecBole's ``get_model`` looks it up by name."""
    name = model_class.__name__
    module = types.ModuleType(f"{sequential_recommenders.__name__}.{name.lower()}")
    module.__spec__ = ModuleSpec(module.__name__, None)
    setattr(module, name, model_class)
    sys.modules[module.__name__] = module
    setattr(sequential_recommenders, name, model_class)


def register_retriever(
    model_class: type,
    defaults: Mapping[str, Any] | None = None,
    trainer_class: type | None = None,
) -> None:
    """Make a sequential recommender of another package known to RecBole by its class's name.

    Its checkpoints are readable wherever the same class is registered.

    Args:
        model_class: a RecBole ``SequentialRecommender``.
        defaults: its own keys, as RecBole's models have them in a property file.
        trainer_class: where RecBole's ``Trainer`` does not suit it.

    Raises:
        ValueError: RecBole or this package has a model of that name.
    """
    name = model_class.__name__
    if hasattr(sequential_recommenders, name) and name not in _registered:
        raise ValueError(f"There is a model {name!r} already; call yours otherwise.")
    _make_known(model_class)
    _registered[name], _default_settings[name] = model_class, dict(defaults or {})
    if trainer_class is not None:
        setattr(recbole_trainers, f"{name}Trainer", trainer_class)


def register() -> None:
    """Make ``LlamaRec`` and ``LRURec`` known to RecBole; called on import of the package."""
    for name, module_name in MODELS.items():
        _make_known(getattr(importlib.import_module(module_name), name))
    for name, module_name in TRAINERS.items():
        trainer = f"{name}Trainer"
        setattr(recbole_trainers, trainer, getattr(importlib.import_module(module_name), trainer))
    dataset = importlib.import_module("recbole_llamarec.data.dataset").LlamaRecDataset
    for name in MODELS:
        setattr(recbole_datasets, f"{name}Dataset", dataset)


def _install_shims() -> None:
    Config.compatibility_settings(None)  # sets NumPy's old scalar names; unpickling skips it
    _shim_data()
    _shim_ray()
    _shim_hyper_tuning()
    Config._init_device = _init_device
    Config._update_internal_config_dict = _update_internal_config_dict
    Collector.get_data_struct = _get_data_struct
    trainer_module.DistributedDataParallel = _distributed
    trainer_module.Trainer._save_checkpoint = _save_checkpoint
    trainer_module.Trainer.evaluate = _evaluate_with_checkpoints(trainer_module.Trainer.evaluate)
    trainer_module.Trainer.resume_checkpoint = _with_checkpoints(
        trainer_module.Trainer.resume_checkpoint
    )
    _replace_everywhere(
        "load_data_and_model", quick_start.load_data_and_model, _load_data_and_model
    )
    quick_start.run_recboles = run_recboles
    _replace_everywhere("ensure_dir", recbole_ensure_dir, _ensure_dir)


_recbole_init_device = Config._init_device
_recbole_update_internal_config_dict = Config._update_internal_config_dict
_recbole_save_checkpoint = trainer_module.Trainer._save_checkpoint
_recbole_run_recboles = quick_start.run_recboles
_load_data_and_model = _with_checkpoints(quick_start.load_data_and_model)
_install_shims()


# --- configurations ----------------------------------------------------------------------------

# What a retriever shares with the run that it is part of; everything else is its own.
SHARED_KEYS = (
    *general_arguments,
    *evaluation_arguments,
    *dataset_arguments,
    *("device", "single_spec", "local_rank", "world_size", "nproc", "offset", "ip", "port"),
    *("worker", "shuffle", "wandb_project", "numerical_features", "eval_type"),
    *("valid_neg_sample_args", "test_neg_sample_args", "encoding", "exact_chronology"),
)


@contextmanager
def no_command_line() -> Iterator[None]:
    """Within, a ``Config`` is made without the command line, which overrides everything else."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def sequential_model_class(name: str) -> type:
    """The class of a sequential recommender that RecBole knows by ``name``.

    Raises:
        ValueError: there is none, or it is not sequential; the message names the YAML key.
    """
    try:
        model_class = get_model(name)
    except (ValueError, AttributeError, TypeError, ModuleNotFoundError):
        known = ", ".join(sorted(n for n in vars(sequential_recommenders) if n[0].isupper()))
        raise ValueError(
            f"retriever: {name!r} is not a model that RecBole knows. Allowed are its sequential "
            f"recommenders, spelt as their classes: {known}."
        ) from None
    if model_class.type != ModelType.SEQUENTIAL or name == "LlamaRec":
        raise ValueError(
            f"retriever: {name!r} is not a sequential retriever; LlamaRec retrieves from a user's "
            "history. Use a sequential recommender such as LRURec, SASRec or GRU4Rec."
        )
    return model_class


def retriever_config(config: Config, model: str, overrides: Mapping[str, Any]) -> Config:
    """A RecBole ``Config`` for the retriever ``model`` inside the run of ``config``.

    The retriever keeps RecBole's own defaults for training, with ``overrides`` on top; the data,
    the evaluation and the machine are the run's. The command line belongs to the run and is not
    read again. Negative sampling is off where the retriever's loss is a cross-entropy over all
    items (RecBole refuses the two together, and leaves it to the user to say so).
    """

    def build(extra: Mapping[str, Any]) -> Config:
        return Config(model=model, dataset=config["dataset"], config_dict={**overrides, **extra})

    with no_command_line():
        own = build({} if "train_neg_sample_args" in overrides else {"train_neg_sample_args": None})
        if own["loss_type"] != "CE" and "train_neg_sample_args" not in overrides:
            own = build({})
    for key in SHARED_KEYS:
        if key in config and key not in overrides:
            own[key] = config[key]
    construct_transform(own)  # writes its field names into the config, where the model reads them
    return own


def retriever_loaders(config: Config, train_data, valid_data):
    """The run's training and validation data in loaders that suit the retriever of ``config``.

    Args:
        config: from :func:`retriever_config`.
        train_data, valid_data: the run's loaders; ``valid_data`` may be ``None``.

    Returns:
        a training loader and a validation loader (``None`` where there is no validation data).
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
    """A loader of ``dataset`` for full-ranking evaluation, as ``eval_data`` is one of its own."""
    return get_dataloader(config, "valid")(config, dataset, eval_data._sampler, shuffle=False)


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

    Raises:
        ValueError: names the keys that neither RecBole nor the retriever's property file know.
    """
    known = known_keys(config)
    unknown = [key for key in overrides if key not in known]
    if unknown:
        nearest = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
        hints = "; ".join(
            f"{key!r}" + (f" (did you mean {match[0]!r}?)" if match else "")
            for key, match in nearest.items()
        )
        raise ValueError(
            f"retriever_config: {config['model']} has no such key: {hints}. Its keys are in "
            f"RecBole's properties/model/{config['model']}.yaml and RecBole's training settings."
        )
