"""RecBole's own keys, each with one rule: which values its code takes.

RecBole checks few of them, and most of those late: ``learner: adamm`` trains with Adam,
``epochs: 1.5`` fails when the epochs begin, and an interval that is none filters nothing. These
rules are checked before RecBole reads a value, for a run of LlamaRec or LRURec and for the
``retriever_config`` of every retriever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from recbole.evaluator.register import metric_types

from recbole_llamarec.keys import (
    SWITCH,
    TEXT,
    Rule,
    either,
    is_text,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    value_error,
    whole,
)
from recbole_llamarec.path_rules import FILE, PATH
from recbole_llamarec.recbole_data_keys import DATA_RULES

# RecBole also builds sparse_adam, which no model here can be trained with: it takes the gradients
# of sparse embeddings alone, and RecBole's sequential models and adapters have none.
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
LARGEST_SEED = 2**32 - 2**10  # NumPy's, with room for the process's number, which RecBole adds
MOST_DECIMALS = 15  # of a float64


def _is_learner(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in LEARNERS


def _is_metric(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in metric_types


def _are_metrics(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return (
        isinstance(names, list | tuple)
        and len(names) > 0
        and all(map(_is_metric, names))
        and len({metric_types[name.lower()] for name in names}) == 1
    )


def _is_gpu(value: Any) -> bool:
    if isinstance(value, tuple):  # as the command line gives 0,1
        return all(map(_is_gpu, value))
    return is_text(value) or whole(0).accepts(value)


def _is_level(value: Any) -> bool:
    levels = ("debug", "info", "warning", "error", "critical")
    return value is None or (isinstance(value, str) and value.lower() in levels)


def _is_none(value: Any) -> bool:
    return value is None


def _logs_somewhere(value: Any) -> bool:
    """RecBole imports wandb when its trainer is made, and does not name the key."""
    try:
        return value is False or (value is True and bool(import_module("wandb")))
    except ImportError:
        return False


def _is_port(value: Any) -> bool:
    if isinstance(value, str) and re.fullmatch(r"\d{1,5}", value):
        value = int(value)
    return type(value) is int and 0 <= value < 2**16


LEARNER = Rule("str", f"one of RecBole's optimizers: {', '.join(LEARNERS)}", _is_learner)
METRICS = Rule(
    "list of str",
    "a metric of RecBole's or a list of them, all of rankings or all of values: "
    + ", ".join(sorted(metric_types)),
    _are_metrics,
)
TOPK = Rule(
    "list of int",
    "a whole number of at least 1, or a list of them",
    lambda value: (
        whole(1).accepts(value) or (isinstance(value, list) and list_of(whole(1)).accepts(value))
    ),
)
CLIPPING = mapping_of(
    {
        "max_norm": number(above=0),
        "norm_type": number(above=0),
        "error_if_nonfinite": SWITCH,
        "foreach": optional(SWITCH),
    },
    required=("max_norm",),
)
# What is drawn beside each row of training. RecBole writes "none" for a rule that it has read.
NEGATIVES = mapping_of(
    {
        "distribution": optional(one_of("uniform", "popularity", "none", "None")),
        "sample_num": either("none", whole(1)),
        "alpha": either("none", number(at_least=0, at_most=10)),
        "dynamic": SWITCH,
        "candidate_num": whole(0),
    },
    required=("distribution",),
)
RULES: dict[str, Rule] = {
    **DATA_RULES,
    # Machine and files
    "gpu_id": Rule("str", "a GPU's number, several with commas between, or '' for none", _is_gpu),
    "use_gpu": SWITCH,
    "worker": whole(0, 64),
    "nproc": whole(1, 1024),
    "world_size": whole(-1, 2**16),
    "offset": whole(0, 2**16),
    "group_offset": whole(0, 2**16),
    "ip": TEXT,
    "port": Rule("int", "a whole number of at least 0 and below 65536", _is_port),
    "seed": whole(0, LARGEST_SEED),
    "state": Rule("str", "debug, info, warning, error or critical", _is_level),
    "reproducibility": SWITCH,
    "data_path": PATH,
    "checkpoint_dir": PATH,
    "show_progress": SWITCH,
    "save_dataset": SWITCH,
    "save_dataloaders": SWITCH,
    "dataset_save_path": optional(FILE),
    "dataloaders_save_path": optional(FILE),
    "log_wandb": Rule(
        "bool", "False, or True where wandb is installed (pip install wandb)", _logs_somewhere
    ),
    "wandb_project": TEXT,
    "shuffle": SWITCH,
    # Training
    "epochs": whole(0),
    "train_batch_size": whole(1),
    "learner": LEARNER,
    "learning_rate": number(above=0, at_most=1),
    "weight_decay": number(at_least=0, at_most=10),
    "train_neg_sample_args": optional(either("None", NEGATIVES)),
    "eval_step": whole(-1),
    "stopping_step": whole(0),
    "clip_grad_norm": optional(CLIPPING),
    "loss_decimal_place": whole(0, MOST_DECIMALS),
    "require_pow": SWITCH,
    "enable_amp": SWITCH,
    "enable_scaler": SWITCH,
    "transform": optional(
        one_of(
            *("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq"), "user_defined"
        )
    ),
    # Evaluation
    "repeatable": SWITCH,
    "metrics": METRICS,
    "topk": TOPK,
    "valid_metric": TEXT,
    "eval_batch_size": whole(1),
    "metric_decimal_place": whole(0, MOST_DECIMALS),
}
# A run's batches are read as they are by every stage; a retriever may transform its own.
RUN_RULES = {**RULES, "transform": Rule("~", "nothing (~): set it in retriever_config", _is_none)}


def wrong_values(
    values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = ""
) -> dict[str, str]:
    """An error for each key whose value its rule does not allow.

    Args:
        values: by key; keys without a rule are left out.
        rules: by key; keys without a value are left out.
        prefix: what a message says before the key.
    """
    return {
        name: error
        for name, rule in rules.items()
        if name in values and (error := value_error(f"{prefix}{name}", values[name], rule))
    }
