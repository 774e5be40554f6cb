"""Settings as the user gives them: texts that cannot be evaluated, and every fault at once."""

from __future__ import annotations

import math
import sys

import pytest
from recbole.config import Config

from recbole_llamarec.integration.configs import retriever_config
from recbole_llamarec.integration.known import rules_of


@pytest.mark.parametrize(
    "text", ["1/0", "re.x", "[][0]", "a\0b", "exit()", "\ud800", "(" * 300, "{}['a']", "plain"]
)
def test_a_text_whose_code_fails_stays_a_text(workdir, text):
    config = Config(
        model="SASRec", dataset="tiny", config_dict={"my_note": text, "train_neg_sample_args": None}
    )
    assert config["my_note"] == text


def test_a_wording_that_looks_like_code_is_read_without_a_warning(workdir, recwarn):
    sys.argv[1:] = ["--prompt_candidate_item={title} ({label})"]
    config = Config(model="LlamaRec", dataset="tiny", config_dict={"my_note": "{title} [{label}]"})
    assert config["prompt_candidate_item"] == "{title} ({label})"
    assert not [own for own in recwarn if own.category is SyntaxWarning]


def test_texts_are_evaluated_as_recbole_does(workdir):
    sys.argv[1:] = ["--topk=[5,10]", "--epochs=3", "--learner=adam", "--show_progress=false"]
    config = Config(model="LlamaRec", dataset="tiny", config_dict={"seed": "7"})
    assert (config["topk"], config["epochs"], config["learner"]) == ([5, 10], 3, "adam")
    assert config["show_progress"] is False and config["seed"] == 7


def test_every_fault_of_both_stages_is_named_at_once(workdir):
    values = {
        "epochs": 1.5,
        "clip_grad_norm": 5,
        "seed": 2**40,
        "metrics": ["NDCG", "None"],
        "user_inter_num_interval": "5",
        "lora_alpha": math.nan,
        "item_text_fallback": "Item {id}",
        "train_positions": 2**63,
        "retriever_config": {"learner": "adamm", "radius_max": 1.0, "weight_decay": math.inf},
    }
    with pytest.raises(ValueError) as error:
        Config(model="LlamaRec", dataset="tiny", config_dict=values)
    head, *lines = str(error.value).splitlines()
    assert head == "LlamaRec cannot start:"
    nested = [f"retriever_config: {key}" for key in values["retriever_config"]]
    named = [*(key for key in values if key != "retriever_config"), *nested]
    for key in named:
        assert len([line for line in lines if line.startswith(f"- {key}: ")]) == 1, key
    assert len(lines) == len(named)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": -1, "embedding_size": 0}, ["epochs: -1", "embedding_size: 0"]),
        ({"train_neg_sample_args": {"distribution": "uniform"}}, ["train_neg_sample_args"]),
        ({"metrics": ["AUC"], "valid_metric": "AUC"}, ["metrics: ['AUC']", "NDCG".lower()]),
        ({"loss_type": "BPR"}, ["loss_type: 'BPR'"]),
    ],
)
def test_lrurec_by_itself_is_checked_likewise(workdir, values, words):
    with pytest.raises(ValueError, match="LRURec cannot start") as error:
        Config(model="LRURec", dataset="tiny", config_dict=values)
    for word in words:
        assert word in str(error.value)


def test_other_models_are_recboles_own(workdir):
    values = {"epochs": 1.5, "train_neg_sample_args": None}
    assert Config(model="SASRec", dataset="tiny", config_dict=values)["epochs"] == 1.5


def test_another_retrievers_values_must_be_of_the_kind_of_its_defaults(workdir):
    rules = rules_of("SASRec")
    assert rules["hidden_size"].accepts(128) and rules["layer_norm_eps"].accepts(1e-12)
    for key, value in (("hidden_size", "128"), ("hidden_act", 1), ("layer_norm_eps", math.nan)):
        with pytest.raises(ValueError, match=f"retriever_config: {key}: "):
            Config(
                model="LlamaRec",
                dataset="tiny",
                config_dict={"retriever": "SASRec", "retriever_config": {key: value}},
            )


def test_the_settings_of_a_checkpoint_as_recbole_has_changed_them_are_right(workdir):
    first = Config(
        model="LlamaRec",
        dataset="tiny",
        config_dict={"topk": 5, "metrics": "NDCG", "valid_metric": "NDCG@5"},
    )
    again = {
        key: value
        for key, value in first.final_config_dict.items()
        if key in ("topk", "metrics", "eval_args", "valid_metric")
    }
    assert Config(model="LlamaRec", dataset="tiny", config_dict=again)["topk"] == [5]
    assert retriever_config(first, "LRURec", {"epochs": 2})["epochs"] == 2
