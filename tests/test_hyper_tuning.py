"""Tuning: one retriever for all trials, RecBole's file format, hyperopt and Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, environment
from recbole.trainer import HyperTuning

import recbole_llamarec.trainer as trainer_module
from recbole_llamarec import hyper
from recbole_llamarec.hyper_tuning import (
    read_space,
    share_of_machine,
    shares_retriever,
    trial,
    tune_with_hyperopt,
    tune_with_ray,
    with_trained_retriever,
)
from recbole_llamarec.integration.checkpoints import load_checkpoint


@pytest.fixture
def trained_files(monkeypatch) -> list[Path]:
    """Retrievers that were trained, as they are trained."""
    files: list[Path] = []
    plain = trainer_module.train_retriever

    def noted(config, retriever, train_data, valid_data, file, *rest, **options):
        files.append(file)
        return plain(config, retriever, train_data, valid_data, file, *rest, **options)

    monkeypatch.setattr(trainer_module, "train_retriever", noted)
    return files


def command_line(tiny_run, space: str) -> list[str]:
    """Arguments of the command on the small data set."""
    Path("run.yaml").write_text(yaml.safe_dump({k: v for k, v in tiny_run.items() if k != "model"}))
    Path("space.test").write_text(space)
    return ["--params_file=space.test", "--dataset=tiny", "--config_files=run.yaml"]


def test_trials_that_differ_in_the_ranker_share_one_retriever(
    tiny_run, trained_files, capsys, monkeypatch
):
    monkeypatch.setattr("webbrowser.open", lambda *_: True)  # RecBole shows its plot
    arguments = command_line(tiny_run, "# what\nlearning_rate choice [1e-3,1e-2]\n")
    arguments += ["--output_file=trials.txt", "--display_file=trials.html", "--epochs=1"]
    hyper.main(arguments)
    (file,) = trained_files
    assert load_checkpoint(file)["config"]["model"] == "LRURec"
    printed = capsys.readouterr().out
    assert 'Best of 2 trials by validation: --learning_rate="0.0' in printed
    assert f"--retriever_checkpoint={file.resolve()}" in printed
    trials = Path("trials.txt").read_text()
    assert trials.count("learning_rate") == trials.count("Test result") == 2
    assert "Plotly" in Path("trials.html").read_text()


def test_a_shared_retriever_changes_no_trial(tiny_run, trained_files):
    shared = with_trained_retriever(tiny_run, ["lora_r"])
    alone, with_shared = (trial({"lora_r": 4}, settings=s) for s in (tiny_run, shared))
    assert len(trained_files) == 2  # the shared one and that of the trial alone
    assert alone["test_result"] == with_shared["test_result"]
    assert alone["best_valid_score"] == with_shared["best_valid_score"]


@pytest.mark.parametrize(("given", "expected"), [({}, None), ({"lora_adapter": "mine"}, "mine")])
def test_a_trial_tunes_unless_an_adapter_is_given(monkeypatch, given, expected):
    settings = {"model": "LlamaRec", **given}
    monkeypatch.setattr("recbole_llamarec.hyper_tuning.objective_function", lambda own, _: own)
    assert trial({"lora_r": 4}, settings=settings)["lora_adapter"] == expected


def test_what_the_retriever_depends_on_has_trials_train_their_own(tiny_run, trained_files, caplog):
    for key in ("retriever", "seed", "MAX_ITEM_LIST_LENGTH", "rerank_mask_seen", "valid_metric"):
        assert not shares_retriever(["lora_r", key]), key
    for key in (
        "epochs",
        "learning_rate",
        "prompt_max_history",
        "evidence_items",
        "scorers",
        "lora_alpha",
    ):
        assert shares_retriever([key]), key
    assert with_trained_retriever(tiny_run, ["lora_r", "seed"]) == tiny_run
    assert "The retriever depends on seed" in caplog.text
    given = tiny_run | {"retriever_checkpoint": "saved/LRURec.pth"}
    assert with_trained_retriever(given, ["lora_r"]) == given
    assert trained_files == []


def test_the_shared_retriever_is_trained_without_any_scorer(tiny_run, monkeypatch):
    """Neither evidence nor a scorer from outside is built or fitted for it."""
    for name in ("language_model.load_language_model", "evidence.Evidence.build"):
        monkeypatch.setattr(f"recbole_llamarec.scoring.{name}", None)
    given = {"evidence_items": 3, "scorers": ["not registered"], "rerank_fusion": "auto"}
    settings = with_trained_retriever(tiny_run | given, ["evidence_items", "scorers"])
    assert load_checkpoint(settings["retriever_checkpoint"])["config"]["model"] == "LRURec"
    assert {key: settings[key] for key in given} == given  # of the trials they are as they were
    endings = {file.name.split(".", 1)[1] for file in Path(tiny_run["checkpoint_dir"]).iterdir()}
    assert endings == {"pth", "LRURec.pth"}  # nothing of an interrupted run


def test_kinds_of_a_space(workdir):
    file = workdir / "space.test"
    file.write_text(
        "lora_target_modules choice [['q_proj'], ['q_proj', 'v_proj']]\n\n"
        "lora_dropout uniform 0, 0.2\nlora_alpha quniform 8,64,8\nlearning_rate loguniform -12,-6\n"
    )
    assert read_space(file) == {
        "lora_target_modules": ("choice", [["q_proj"], ["q_proj", "v_proj"]]),
        "lora_dropout": ("uniform", [0, 0.2]),
        "lora_alpha": ("quniform", [8, 64, 8]),
        "learning_rate": ("loguniform", [-12, -6]),
    }


def test_the_example_is_in_recboles_format_and_shares_the_retriever():
    file = ROOT / "properties" / "hyper" / "llamarec.test"
    assert set(HyperTuning._build_space_from_file(file)) == set(read_space(file))
    assert shares_retriever(read_space(file))


@pytest.mark.parametrize(
    "line",
    ["lora_r", "lora_r choice", "lora_r pick [1,2]", "lora_r choice [1", "lora_r uniform 1",
     "lora_r uniform 1,2,3", "lora_r choice __import__('os')", "lora_r choice 3",
     "lora_r choice 'likelihood'"],
)  # fmt: skip
def test_a_wrong_line_is_named(workdir, line):
    Path("space.test").write_text(f"# comment\n{line}\n")
    with pytest.raises(SystemExit, match=r"space\.test, line 2: .lora_r"):
        hyper.main(["--params_file=space.test"])


def test_a_key_that_is_there_twice_is_named(workdir):
    Path("space.test").write_text("lora_r choice [4,8]\nseed choice [1]\nlora_r choice [16]\n")
    with pytest.raises(SystemExit, match=r"space\.test, line 3: lora_r is there already"):
        hyper.main(["--params_file=space.test"])


@pytest.mark.parametrize("option", ["--concurrent=0", "--max_evals=0"])
def test_no_trial_at_all_is_refused(workdir, option, capsys):
    with pytest.raises(SystemExit):
        hyper.main(["--params_file=space.test", option])
    assert f"{option.replace('=', ' is ')}; it must be at least 1" in capsys.readouterr().err


def test_every_combination_is_tried_however_long_none_is_better(monkeypatch):
    pytest.importorskip("hyperopt")
    tried = []

    def scored(params, _):
        tried.append((params["lora_r"], params["lora_alpha"]))
        score = float(len(tried) == 1)  # the first is the best
        result = {"best_valid_score": score, "valid_score_bigger": True, "model": "LlamaRec"}
        return result | {"best_valid_result": {}, "test_result": {}}

    monkeypatch.setattr("recbole_llamarec.hyper_tuning.objective_function", scored)
    space = {"lora_r": ("choice", [*range(1, 7)]), "lora_alpha": ("choice", [*range(1, 6)])}
    tuned = tune_with_hyperopt(space, {}, max_evals=10)
    assert tuned.n_trials == len(tried) == len(set(tried)) == 30


@pytest.mark.parametrize(
    ("n_gpus", "concurrent", "share"),
    [(3, 2, 1), (4, 2, 2), (2, 2, 1), (1, 2, 0.5), (2, 3, 0.5), (0, 2, None)],
)
def test_a_trial_has_whole_gpus_or_a_part_of_one(monkeypatch, n_gpus, concurrent, share):
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
    assert share_of_machine(concurrent).get("GPU") == share


def test_missing_and_empty_files_are_named(workdir):
    with pytest.raises(SystemExit, match=r"--params_file: there is no file 'none\.test'"):
        hyper.main(["--params_file=none.test"])
    Path("space.test").write_text("# nothing\n")
    with pytest.raises(SystemExit, match="names nothing to tune"):
        hyper.main(["--params_file=space.test"])


def test_numbers_are_drawn_by_the_bayesian_search(tiny_run, capsys):
    arguments = command_line(tiny_run, "learning_rate loguniform -7,-5\n")
    hyper.main([*arguments, "--max_evals=2", "--retriever_config={'epochs':1}"])
    printed = capsys.readouterr().out
    assert "Best of 2 trials" in printed
    (value,) = [w for w in printed.split() if w.startswith("--learning_rate=")]
    assert 0.0009 < float(value.split('"')[1]) < 0.0068  # exp(-7) to exp(-5)


def test_what_is_not_installed_is_named(tiny_run, monkeypatch):
    space = {"lora_r": ("choice", [4])}
    for name in ("ray", "hyperopt"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    with pytest.raises(ImportError, match=r"pip install 'ray\[tune\]'"):
        tune_with_ray(space, tiny_run, Path("saved"))
    with pytest.raises(ImportError, match="pip install hyperopt"):
        tune_with_hyperopt(space, tiny_run)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(sys.modules["ray"], "init"), reason="needs Ray: pip install 'ray[tune]'"
)
def test_ray_runs_the_trials(tiny_run):
    """In a process of its own, since this one may have imported RecBole with the stub of Ray."""
    arguments = command_line(tiny_run, "learning_rate choice [1e-3,1e-2]\n")
    done = subprocess.run(
        [sys.executable, "-m", "recbole_llamarec.hyper", *arguments, "--tool=ray"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Best of 2 trials" in done.stdout
    saved = Path(tiny_run["checkpoint_dir"])
    assert len([*saved.glob("*.LRURec.pth")]) == 1
    assert len([*Path("saved/ray").glob("*/*.adapter")]) == 2
    assert not [*Path("saved/ray").rglob("*.LRURec.pth")]
