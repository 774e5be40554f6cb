"""What RecBole needs to find and run the plugin on current releases of its dependencies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import environment
from recbole.config import Config
from recbole.evaluator.collector import Collector
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer, init_logger

from recbole_llamarec.integration.data_shims import len_of_each


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


def test_a_full_disk_under_the_log_is_said_once(tmp_path):
    code = (
        "import logging, os, sys; os.chdir(sys.argv[1]); import recbole_llamarec\n"
        "from recbole.config import Config; from recbole.utils import init_logger\n"
        "keys = {'train_neg_sample_args': None}\n"
        "init_logger(Config('SASRec', 'tiny', config_dict=keys))\n"
        "(file,) = [h for h in logging.getLogger().handlers if hasattr(h, 'baseFilename')]\n"
        "file.setStream(open('/dev/full', 'w')); sys.stderr = sys.stdout\n"
        "for line in range(3): logging.getLogger().info(f'line {line}')\n"
    )
    lines = run_python(code, str(tmp_path)).splitlines()
    (told,) = [line for line in lines if "ends here" in line]
    assert "No space left on device" in told and str(tmp_path / "log") in told
    assert "Traceback" not in "".join(lines)


def test_a_checkpoint_is_read_where_no_log_can_be_written(trained, monkeypatch, caplog):
    monkeypatch.chdir("/proc")  # takes no file of root's either
    config, *_ = load_data_and_model(trained.checkpoint, trained.data_path)
    assert "There is no file of this log in '/proc/log/LlamaRec': No such file" in caplog.text
    del config.comes_from_file
    with pytest.raises(OSError, match="where the logs go: .*nothing has been trained yet"):
        init_logger(config)


def test_lengths_of_sequences_under_pandas_3():
    assert len_of_each(pd.Series([[1, 2], [3]])).tolist() == [2, 1]
    assert len_of_each([1, 2, 3]) == 3


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
    config, model, _, _, _, test = load_data_and_model(str(file), tiny_run["data_path"])
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    trainer.resume_checkpoint(str(file))
    assert trainer.evaluate(test, load_best_model=False) == first["test_result"]
