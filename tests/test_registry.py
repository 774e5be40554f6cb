"""What RecBole needs to find and run the plugin on current releases of its dependencies."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import environment
from recbole.config import Config
from recbole.evaluator.collector import Collector
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import Trainer
from recbole.utils import get_trainer

from recbole_llamarec import registry


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# --- property files ------------------------------------------------------------------------------


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
    files = registry.properties_file
    monkeypatch.setattr(
        registry, "properties_file", lambda kind, n: file if kind == "dataset" else files(kind, n)
    )
    config = Config(model="LlamaRec", dataset="made-up")
    assert config["item_text_format"] == "{name}"


# --- retriever configurations --------------------------------------------------------------------


def test_a_retriever_shares_the_data_and_keeps_its_own_training(workdir):
    sys.argv[1:] = ["--epochs=1", "--seed=5", "--MAX_ITEM_LIST_LENGTH=30"]
    run = Config(model="LlamaRec", dataset="ml-100k")
    own = registry.retriever_config(run, "SASRec", {"hidden_size": 16})
    assert (own["seed"], own["MAX_ITEM_LIST_LENGTH"]) == (5, 30)
    assert (own["epochs"], own["train_batch_size"], own["learner"]) == (300, 2048, "adam")
    assert own["hidden_size"] == 16
    assert own["train_neg_sample_args"]["distribution"] == "none"  # CE refuses negatives
    pairwise = registry.retriever_config(run, "FPMC", {})
    assert pairwise["train_neg_sample_args"]["distribution"] == "uniform"
    assert sys.argv[1] == "--epochs=1"


class Popular(SequentialRecommender):
    """A retriever of another package that knows popular items alone."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.scores = torch.nn.Parameter(torch.arange(float(self.n_items)) * config["factor"])

    def full_sort_predict(self, interaction):
        return self.scores.expand(len(interaction), -1)


class PopularTrainer(Trainer):
    """There is nothing to train."""

    def fit(self, *_, **__):
        self._save_checkpoint(0)


def test_a_retriever_of_another_package(tiny_run):
    for _ in range(2):  # as when a cell of a notebook is run again
        registry.register_retriever(Popular, {"factor": 1.0, "loss_type": "CE"}, PopularTrainer)
    settings = {"retriever": "Popular", "ranking_method": "none"}
    result = run_recbole(config_dict=tiny_run | settings)
    (file,) = Path(tiny_run["checkpoint_dir"]).glob("*.Popular.pth")
    assert registry.load_checkpoint(file)["config"]["factor"] == 1
    worst = run_recbole(config_dict=tiny_run | settings | {"retriever_config": {"factor": -1.0}})
    assert worst["test_result"] != result["test_result"]
    with pytest.raises(ValueError, match="Popular has no such key: 'factr' .did you mean 'factor'"):
        run_recbole(config_dict=tiny_run | settings | {"retriever_config": {"factr": -1.0}})


def test_a_retriever_cannot_take_the_name_of_a_model():
    with pytest.raises(ValueError, match="There is a model 'SASRec' already"):
        registry.register_retriever(type("SASRec", (SequentialRecommender,), {}))


# --- shims ---------------------------------------------------------------------------------------


def test_numpy_names_stand_before_any_config_is_made():
    """RecBole's metrics use them, and unpickling a Config does not set them."""
    assert run_python("import recbole_llamarec, numpy; print(numpy.float is not None)") == "True\n"


def test_the_import_is_quick_and_loads_no_language_model():
    code = (
        "import sys, recbole_llamarec; print('transformers' in sys.modules, 'ray' in sys.modules)"
    )
    assert run_python(code).split()[0] == "False"


def test_ray_is_not_needed():
    code = (
        "import sys; sys.modules['ray'] = None\n"  # importing it raises ImportError
        "import recbole_llamarec\n"
        "from recbole.quick_start import run_recbole, objective_function\n"
        "import ray.tune; ray.tune.report({'loss': 1.0})\n"
    )
    run_python(code)


def test_two_processes_may_make_the_same_folder(tmp_path, monkeypatch):
    """RecBole looks first and makes it then; the other process may be quicker in between."""
    import recbole.trainer.trainer
    import recbole.utils.logger

    monkeypatch.setattr("os.path.exists", lambda path: False)
    for module in (recbole.utils.logger, recbole.trainer.trainer):
        module.ensure_dir(str(tmp_path / "log"))
        module.ensure_dir(str(tmp_path / "log"))
    assert (tmp_path / "log").is_dir()


def test_lengths_of_sequences_under_pandas_3():
    assert registry._len_of_each(pd.Series([[1, 2], [3]])).tolist() == [2, 1]
    assert registry._len_of_each([1, 2, 3]) == 3


def test_metrics_that_need_item_counts(workdir):
    config = Config(
        model="LRURec", dataset="ml-100k", config_dict={"metrics": ["GiniIndex"], "topk": [5]}
    )
    config["valid_metric"] = "GiniIndex@5"
    collector = Collector(config)
    collector.data_struct.set("data.num_items", 7)
    collector.data_struct.set("rec.items", torch.zeros(2, 5))
    struct = collector.get_data_struct()
    assert struct.get("data.num_items") == 7
    assert "rec.items" in struct and "rec.items" not in collector.data_struct


def test_models_of_recbole_itself_still_run(tiny_run):
    """A general and a sequential one, from training to a checkpoint in the same process."""
    settings = {k: tiny_run[k] for k in ("dataset", "data_path", "checkpoint_dir", "topk")}
    settings |= {"epochs": 2, "show_progress": False, "metrics": ["Recall"], "state": "ERROR"}
    settings |= {
        "valid_metric": "Recall@10",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    }
    assert run_recbole(model="BPR", config_dict=settings)["test_result"]["recall@10"] >= 0
    settings["train_neg_sample_args"] = None
    first = run_recbole(model="SASRec", config_dict=settings)
    (file,) = Path(tiny_run["checkpoint_dir"]).glob("SASRec*.pth")
    config, model, _, _, _, test = load_data_and_model(str(file))
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    trainer.resume_checkpoint(str(file))
    assert trainer.evaluate(test, load_best_model=False) == first["test_result"]


# --- checkpoints ---------------------------------------------------------------------------------


class Harmful:
    """Unpickles to a call of a harmless function, as an attack would to a harmful one."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    file = tmp_path / "attack.pth"
    torch.save({"config": Harmful()}, file, pickle_protocol=4)
    with pytest.raises(ValueError, match=r"attack\.pth.*builtins\.print"):
        registry.load_checkpoint(file)
    with pytest.raises(ValueError, match="print"):
        load_data_and_model(str(file))
    assert "never" not in capsys.readouterr().out


def test_a_checkpoint_names_only_classes_of_recbole(tmp_path):
    import recbole.utils.utils

    file = tmp_path / "function.pth"
    torch.save({"f": recbole.utils.utils.ensure_dir}, file, pickle_protocol=4)
    with pytest.raises(ValueError, match="ensure_dir"):
        registry.load_checkpoint(file)


def test_plain_values_of_a_checkpoint(tmp_path):
    file = tmp_path / "plain.pth"
    state = {"score": np.float64(0.5), "weight": torch.ones(2), "names": {"a", "b"}}
    torch.save(state, file, pickle_protocol=4)
    loaded = registry.load_checkpoint(file)
    assert loaded["score"] == 0.5 and torch.equal(loaded["weight"], torch.ones(2))
    assert loaded["names"] == {"a", "b"}


def test_torch_load_itself_is_left_alone(trained, workdir):
    load_data_and_model(str(trained.checkpoint))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(trained.checkpoint)
