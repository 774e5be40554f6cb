"""The models that this package and its users add to RecBole, and their default settings.

Registration writes here and shims read here, so that neither imports the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import recbole
import recbole.model.sequential_recommender as sequential_recommenders
import yaml
from recbole.config import Config

from recbole_llamarec.keys import PLAIN, SWITCH, TEXT, Rule, mapping_to, number

FILE_RETRIEVER = "file"  # value of the key ``retriever``: candidates of another recommender
# value of ``retriever_file`` where a checkpoint holds the tables
IN_CHECKPOINT = os.path.join(os.devnull, "checkpoint")
PACKAGE = Path(__file__).resolve().parents[1]
MODELS = {"LlamaRec": "recbole_llamarec.llamarec", "LRURec": "recbole_llamarec.retrieval.lrurec"}
TRAINERS = {
    "LlamaRec": "recbole_llamarec.trainer",
    "LRURec": "recbole_llamarec.retrieval.lrurec_trainer",
}

# Retrievers of other packages and their default settings, by class name.
registered_classes: dict[str, type] = {}
default_settings: dict[str, Mapping[str, Any]] = {FILE_RETRIEVER: {"loss_type": "CE"}}


def properties_file(kind: str, name: str) -> Path:
    """Path of ``properties/<kind>/<name>.yaml``, in a checkout or in an installed package.

    Args:
        kind: a folder of ``properties/``, such as ``model`` or ``dataset``.
        name: name of the model or the data set.

    Returns:
        the path; the file need not exist.
    """
    return _properties() / kind / f"{name}.yaml"


def named_file(name: str) -> Path:
    """A file that a command names: ``properties/…`` is the package's where there is none here.

    Args:
        name: path as the user gives it; the file need not exist.
    """
    file = Path(name)
    own = _properties().parent / file
    is_own = file.parts[:1] == ("properties",) and not file.exists() and own.is_file()
    return own if is_own else file


def property_files(names: str) -> list[str]:
    """The value of ``--config_files``, names with spaces between them, as paths."""
    return [str(named_file(name)) for name in names.split()]


def _properties() -> Path:
    """A wheel carries the folder inside the package; a checkout has it beside the package."""
    installed = PACKAGE / "properties"
    return installed if installed.is_dir() else PACKAGE.parent / "properties"


def rules_of(model: str) -> Mapping[str, Rule]:
    """Which values the own keys of a retriever may have.

    Args:
        model: its class's name.

    Returns:
        the class's ``rules`` where it states them, as LRURec does; else for each key of its default
        settings what is of the default's kind.
    """
    stated = getattr(getattr(sequential_recommenders, model, None), "rules", None)
    if stated is not None:
        return stated
    defaults = default_settings[model] if model in default_settings else _of_recbole(model)
    return {name: rule for name, value in defaults.items() if (rule := _rule_like(value))}


@cache
def _of_recbole(model: str) -> Mapping[str, Any]:
    """A model's own property file in RecBole."""
    file = Path(recbole.__file__).parent / "properties" / "model" / f"{model}.yaml"
    if not file.is_file():
        return {}
    loader = Config._build_yaml_loader(None)
    return yaml.load(file.read_text(encoding="utf-8"), Loader=loader) or {}


def _rule_like(value: Any) -> Rule | None:
    if isinstance(value, bool):
        return SWITCH
    if isinstance(value, int | float):
        return number()
    if isinstance(value, str):
        return TEXT
    return mapping_to(PLAIN) if isinstance(value, Mapping) else None
