"""A run's configuration as text: what the user has changed, and every key by group."""

from __future__ import annotations

from typing import Any

from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_llamarec.report.record import Setting
from recbole_llamarec.settings import llamarec_keys

NO_SETTINGS = frozenset({"model", "dataset", "config_files", "nproc", "local_rank"})


def changed_settings(config) -> list[Setting]:
    """Keys from the user's files, dict and command line that differ from the default.

    Args:
        config: RecBole's ``Config``; the defaults of the model and of the data set are defaults.
    """
    defaults = config.internal_config_dict
    return [
        Setting(key, as_text(value), as_text(defaults[key]) if key in defaults else "not set")
        for key, value in sorted(config.external_config_dict.items())
        if key not in NO_SETTINGS and (key not in defaults or value != defaults[key])
    ]


def configuration(config, retriever_config) -> dict[str, dict[str, str]]:
    """Every key's value, by group.

    Args:
        config: the run's ``Config``.
        retriever_config: the retriever's own ``Config``.
    """
    name = retriever_config["model"]
    # what both models have, RecBole has given them
    of_retriever = set(retriever_config.internal_config_dict) - set(config.internal_config_dict)
    return {
        "LlamaRec": _values(config, llamarec_keys()),
        "Training of the ranker": _values(config, training_arguments),
        f"Training of the retriever, {name}": _values(retriever_config, training_arguments),
        f"Model of the retriever, {name}": _values(retriever_config, of_retriever),
        "Evaluation": _values(config, evaluation_arguments),
        "Data": _values(config, dataset_arguments),
        "General": _values(config, general_arguments),
    }


def _values(config, keys) -> dict[str, str]:
    return {key: as_text(config[key]) for key in sorted(keys) if key in config}


def as_text(value: Any) -> str:
    """A value as one would write it into a YAML file, nearly."""
    return "~" if value is None else str(value)
