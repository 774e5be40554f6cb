"""Shims of RecBole's ``Config``: texts that cannot be evaluated, and values checked before use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from recbole.config import Config

from recbole_llamarec.integration import known
from recbole_llamarec.recbole_keys import RULES, wrong_values
from recbole_llamarec.settings import LlamaRecSettings
from recbole_llamarec.settings_checks import metrics_are_of_rankings

_recbole_convert_config_dict = Config._convert_config_dict
_recbole_get_final_config_dict = Config._get_final_config_dict


def convert_config_dict(self, config_dict):
    """RecBole's reading of texts from the command line and the config dict as Python.

    RecBole lets some errors of the text's own code through: that of ``1/0``, of ``re.x``, of
    U+0000. Such a text stays a text, as one does whose code is none. What Python warns of in its
    code (``{title} ({label})`` calls a set) is nobody's mistake.
    """
    for key, value in list(config_dict.items()):
        try:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                config_dict.update(_recbole_convert_config_dict(self, {key: value}))
        except (Exception, SystemExit):  # whatever the text says
            config_dict[key] = value
    return config_dict


def get_final_config_dict(self):
    """RecBole's merged settings, checked while they are as the user has given them."""
    values = _recbole_get_final_config_dict(self)
    check_values(self.model, values)
    return values


def check_values(model: str, values: Mapping[str, Any]) -> None:
    """Check the settings of a run of LlamaRec or LRURec; other models are RecBole's own.

    Args:
        model: the run's.
        values: by key, before RecBole changes any.

    Raises:
        ValueError: names every wrong key, the value found, and what is allowed.
    """
    if model == "LlamaRec":
        LlamaRecSettings.from_config(values, finds_model=False)
    elif model in known.MODELS:
        wrong = wrong_values(values, {**RULES, **known.rules_of(model)})
        errors = list(wrong.values())
        if "metrics" not in wrong and "full" in str(values["eval_args"]):
            errors += metrics_are_of_rankings(values["metrics"])
        if errors:
            raise ValueError(f"{model} cannot start:\n" + "\n".join(f"- {e}" for e in errors))


def install() -> None:
    """Install the shims; a second call changes nothing."""
    Config._convert_config_dict = convert_config_dict
    Config._get_final_config_dict = get_final_config_dict
