"""Makes models, trainers and data sets known to RecBole by their names."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import recbole.data.dataset as recbole_datasets
import recbole.model as recbole_models
import recbole.model.sequential_recommender as sequential_recommenders
import recbole.trainer as recbole_trainers

from recbole_llamarec.integration import known, shims


def register() -> None:
    """Install the shims and make ``LlamaRec`` and ``LRURec`` known to RecBole.

    Called on import of the package; a second call changes nothing.
    """
    shims.install()
    for name, module_name in known.MODELS.items():
        _make_known(getattr(importlib.import_module(module_name), name))
    file_retriever = importlib.import_module("recbole_llamarec.retrieval.file_retriever")
    _make_known(file_retriever.FileRetriever, known.FILE_RETRIEVER)
    for name, module_name in known.TRAINERS.items():
        trainer = f"{name}Trainer"
        setattr(recbole_trainers, trainer, getattr(importlib.import_module(module_name), trainer))
    dataset = importlib.import_module("recbole_llamarec.data.dataset").LlamaRecDataset
    for name in known.MODELS:
        setattr(recbole_datasets, f"{name}Dataset", dataset)


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
        ValueError: RecBole or this package has a model of that name, in whatever case.
    """
    name = model_class.__name__
    if name not in known.registered_classes and _is_taken(name):
        raise ValueError(
            f"There is a model {name!r} already, for RecBole finds models by their names in lower "
            "case; call yours otherwise."
        )
    _make_known(model_class)
    known.registered_classes[name] = model_class
    known.default_settings[name] = dict(defaults or {})
    if trainer_class is not None:
        setattr(recbole_trainers, f"{name}Trainer", trainer_class)


def _is_taken(name: str) -> bool:
    """Whether RecBole's ``get_model`` finds a module for a name, in any of its parts."""
    files = Path(recbole_models.__file__).parent.glob(f"*_recommender/{name.lower()}.py")
    return _module_of(name) in sys.modules or any(files)


def _module_of(name: str) -> str:
    return f"{sequential_recommenders.__name__}.{name.lower()}"


def _make_known(model_class: type, name: str | None = None) -> None:
    """Put a model where RecBole's ``get_model`` looks it up by name, its class's if left out."""
    name = name or model_class.__name__
    module = types.ModuleType(_module_of(name))
    module.__spec__ = ModuleSpec(module.__name__, None)
    setattr(module, name, model_class)
    sys.modules[module.__name__] = module
    setattr(sequential_recommenders, name, model_class)
