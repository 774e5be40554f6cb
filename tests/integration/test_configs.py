"""Default property files, and a retriever's configuration derived from a run's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from recbole.config import Config

from recbole_llamarec.integration import known
from recbole_llamarec.integration.configs import retriever_config, sequential_model_class


def test_defaults_stand_where_recbole_reads_a_models_own(workdir):
    """Below the data set's file, --config_files, the config dict and the command line."""
    Path("file.yaml").write_text("lora_alpha: 7\nlora_dropout: 0.2\nlora_r: 2\n")
    sys.argv[1:] = ["--lora_r=4"]
    config = Config(
        model="LlamaRec",
        dataset="ml-100k",
        config_file_list=["file.yaml"],
        config_dict={"lora_dropout": 0.3, "lora_r": 3},
    )
    assert config["rerank_candidates"] == 20  # LlamaRec.yaml
    assert config["train_batch_size"] == 16  # LlamaRec.yaml over overall.yaml
    assert config["eval_batch_size"] == 4096  # overall.yaml
    assert config["item_text_format"] == "{movie_title} ({release_year})"  # ml-100k.yaml of ours
    assert config["load_col"]["item"] == ["item_id", "movie_title", "release_year"]
    assert config["lora_alpha"] == 7  # the file
    assert config["lora_dropout"] == 0.3  # the dict over the file
    assert config["lora_r"] == 4  # the command line over all
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}  # RecBole's sequential.yaml


def test_other_models_keep_recboles_own_settings(workdir):
    config = Config(model="GRU4Rec", dataset="ml-100k", config_dict={"train_neg_sample_args": None})
    assert config["item_text_format"] is None
    assert "item" not in config["load_col"]


def test_data_sets_unknown_to_recbole_may_have_a_file_of_ours(workdir, monkeypatch):
    file = workdir / "made-up.yaml"
    file.write_text("item_text_format: '{name}'\n")
    files = known.properties_file
    monkeypatch.setattr(
        known, "properties_file", lambda kind, n: file if kind == "dataset" else files(kind, n)
    )
    config = Config(model="LlamaRec", dataset="made-up")
    assert config["item_text_format"] == "{name}"


def test_a_retriever_shares_the_data_and_keeps_its_own_training(workdir):
    sys.argv[1:] = ["--epochs=1", "--seed=5", "--MAX_ITEM_LIST_LENGTH=30"]
    run = Config(model="LlamaRec", dataset="ml-100k")
    own = retriever_config(run, "SASRec", {"hidden_size": 16})
    assert (own["seed"], own["MAX_ITEM_LIST_LENGTH"]) == (5, 30)
    assert (own["epochs"], own["train_batch_size"], own["learner"]) == (300, 2048, "adam")
    assert own["hidden_size"] == 16
    assert own["train_neg_sample_args"]["distribution"] == "none"  # CE refuses negatives
    pairwise = retriever_config(run, "FPMC", {})
    assert pairwise["train_neg_sample_args"]["distribution"] == "uniform"
    assert sys.argv[1] == "--epochs=1"


def test_what_recbole_derives_from_a_key_goes_with_that_key(workdir):
    """The better value of a metric is the greater or the smaller one, whatever the run's is."""
    run = Config(model="LlamaRec", dataset="ml-100k", config_dict={"valid_metric": "NDCG@10"})
    of_gini = retriever_config(run, "SASRec", {"valid_metric": "GiniIndex@5"})
    assert of_gini["valid_metric_bigger"] is False
    assert retriever_config(run, "SASRec", {})["valid_metric_bigger"] is True
    run["valid_metric"], run["valid_metric_bigger"] = "GiniIndex@5", False
    assert retriever_config(run, "SASRec", {})["valid_metric_bigger"] is False
    assert retriever_config(run, "SASRec", {"valid_metric": "MRR@5"})["valid_metric_bigger"] is True
    sampled = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni9"}}
    assert retriever_config(run, "SASRec", sampled)["valid_neg_sample_args"]["sample_num"] == 9


def test_the_retrievers_that_a_message_allows_are_allowed():
    with pytest.raises(ValueError, match="'NoSuch' is not a model that RecBole knows") as raised:
        sequential_model_class("NoSuch")
    names = str(raised.value).split("classes: ")[1].removesuffix("; or file.").split(", ")
    assert {"LRURec", "SASRec"} < set(names)
    assert [sequential_model_class(name).__name__ for name in names] == names
