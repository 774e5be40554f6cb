"""RecBole's keys have a rule each, which takes what RecBole's code takes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import recbole
import yaml
from recbole.config import Config
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_llamarec.recbole_data_keys import DATA_RULES
from recbole_llamarec.recbole_keys import RULES, RUN_RULES, wrong_values

PROPERTIES = Path(recbole.__file__).parent / "properties"
# Keys that RecBole lists and reads nowhere, or writes itself.
WITHOUT_RULE = {"config_file", "valid_metric_bigger"}


def recboles_defaults() -> dict:
    loader = Config._build_yaml_loader(None)
    files = ("overall.yaml", "dataset/sample.yaml", "quick_start_config/sequential.yaml")
    merged: dict = {}
    for file in files:
        merged |= yaml.load((PROPERTIES / file).read_text(encoding="utf-8"), Loader=loader)
    return merged


def test_every_key_that_recbole_lists_has_a_rule():
    listed = {*general_arguments, *training_arguments, *evaluation_arguments, *dataset_arguments}
    assert listed - WITHOUT_RULE <= set(RULES)
    assert set(recboles_defaults()) - WITHOUT_RULE <= set(RULES)


def test_recboles_defaults_keep_their_rules():
    assert wrong_values(recboles_defaults(), RUN_RULES) == {}


@pytest.mark.parametrize("dataset", sorted((PROPERTIES / "dataset").glob("ml-100k.yaml")))
def test_recboles_file_of_a_data_set_keeps_its_rules(dataset):
    assert wrong_values(yaml.safe_load(dataset.read_text(encoding="utf-8")), DATA_RULES) == {}


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("epochs", [0, 1, 300], [-1, 1.5, 2.0, True, "3", None, math.nan, [1], 10**5000]),
        ("train_batch_size", [1, 2048], [0, -1, 1.0, False, None]),
        ("eval_step", [-1, 0, 1], [1.5, None]),
        ("learner", ["adam", "AdamW", "SGD"], ["adamm", "adam ", "sparse_adam", None, 1, ["adam"]]),
        ("learning_rate", [1e-30, 1, 1.0], [0, -1, 1.5, math.inf, math.nan, "0.1", True, 10**400]),
        ("weight_decay", [0, 0.1], [-0.1, math.nan, 1e300]),
        (
            "clip_grad_norm",
            [None, {"max_norm": 5}, {"max_norm": 1.0, "norm_type": 1, "foreach": None}],
            [5, {}, {"norm_type": 2}, {"max_norm": 0}, {"max_norm": math.inf}, {"max_norm": "5"}],
        ),
        ("seed", [0, 2020, 2**32 - 2**10], [-1, 2**32 - 1, 2**32, 2**64, 1.0, None]),
        ("metrics", ["NDCG", ["ndcg", "GAUC"], ("MRR",)], [[], "X", ["NDCG", "AUC"], None, [None]]),
        ("topk", [5, [5, 10]], [0, [], [0], True, [True], "5", (5,), 5.0]),
        ("metric_decimal_place", [0, 15], [-1, 16, 2**31, None]),
        ("MAX_ITEM_LIST_LENGTH", [1, 200], [0, 2**31, "50", None]),
        (
            "user_inter_num_interval",
            [None, "[5,inf)", "(2, 4];[7,9]", "[5,5]", [5, 10]],
            ["5", "[5,4]", "[a,b]", "[nan,5]", "[5,inf);", 5, [5], "5,inf"],
        ),
        (
            "eval_args",
            [
                {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
                {"split": {"RS": [8, 1, 1]}, "mode": {"valid": "full", "test": "uni100"}},
                *({"group_by": group} for group in ("user", "none", "None", None)),
            ],
            [
                *("full", None, {"order": "RO"}, {"mode": "fast"}, {"mode": ["full"]}, {"x": 1}),
                *({"split": "RS"}, {"split": {"LS": "all"}}, {"split": {"RS": [0.9, 0.1]}}),
                {"group_by": "User"},
            ],
        ),
        (
            "train_neg_sample_args",
            [None, "None", {"distribution": "uniform", "sample_num": 2}, {"distribution": None}],
            ["uniform", {}, {"distribution": "normal"}, {"distribution": "uniform", "n": 1}],
        ),
        ("load_col", [None, {"inter": ["user_id"]}, {"item": "*"}], [["user_id"], {"inter": None}]),
        ("encoding", ["utf-8", "latin-1"], ["utf-99", "\0", None.__class__]),
        ("gpu_id", ["", "0,1", 0, (0, 1)], [None, -1, [0], "\0", 10**5000]),
        ("port", [5678, "5678"], [-1, 2**16, "port", 1.5]),
        ("state", ["INFO", "error", None], ["loud", 20]),
        ("show_progress", [True, False], [1, "True", None]),
        ("checkpoint_dir", ["saved", "a/b"], ["", "x" * 256, "d/" * 2500, "a\0", None, 5]),
    ],
)
def test_a_rule_takes_what_recbole_takes_and_nothing_else(key, right, wrong):
    assert [value for value in right if not RULES[key].accepts(value)] == []
    assert [number for number, value in enumerate(wrong) if RULES[key].accepts(value)] == []


def test_an_error_names_key_value_and_range():
    (error,) = wrong_values({"epochs": 1.5, "seed": 1}, RULES).values()
    assert error == "epochs: 1.5 must be a whole number of at least 0."
    nested = wrong_values({"seed": -1}, RULES, "retriever_config: ")
    assert nested["seed"].startswith("retriever_config: seed: -1 must be a whole number of at")


def test_a_run_transforms_no_batches_but_a_retriever_may():
    assert "retriever_config" in wrong_values({"transform": "crop_itemseq"}, RUN_RULES)["transform"]
    assert wrong_values({"transform": "crop_itemseq"}, RULES) == {}
