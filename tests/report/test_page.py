"""The page of a run: what is on it, and that nothing on it is taken for markup."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checkpoint_of
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import run_recbole
from recbole.utils import get_model, get_trainer

import recbole_llamarec.report.write as write_module
from recbole_llamarec import report
from recbole_llamarec.analysis import read_users
from recbole_llamarec.integration.configs import loader_like
from recbole_llamarec.report.__main__ import main
from recbole_llamarec.report.page import duration, notes, render, write_page
from recbole_llamarec.report.record import read_record
from recbole_llamarec.scoring.fusion import Fusion, FusionStep
from recbole_llamarec.trainer import LlamaRecTrainer

QUICK = {"ranking_method": "none", "retriever_config": {"epochs": 1}}
SCRIPT = re.compile(r"<script>.*?</script>", re.DOTALL)


def trained_trainer(settings: dict, **options):
    """A trainer after ``fit``, and its test data."""
    config = Config(config_dict=dict(settings))
    train, valid, test = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train, valid, **options)
    return trainer, test


def text_of(page: str) -> str:
    """The page without scripts, with its white space as a browser shows it."""
    return " ".join(SCRIPT.sub("", page).split())


def page_of(settings: dict) -> str:
    """The text of the page that a run writes."""
    run_recbole(config_dict=dict(settings))
    return text_of(checkpoint_of(Path(settings["checkpoint_dir"])).with_suffix(".html").read_text())


# --- content --------------------------------------------------------------------------------------


def test_a_run_writes_its_page(trained):
    page = trained.checkpoint.with_suffix(".html").read_text()
    text = text_of(page)
    for name, value in trained.result["test_result"].items():
        assert f">{name}</th>" in text and f">{value:.4f}</td>" in text
    for words in (
        "Without fusion, verbalizer alone decides the order of the candidates.",
        "(ceiling: Recall@8 = ",
        ">all rows, 39</th>",
        ">final: verbalizer</th>",
        "final: verbalizer against LRURec: ndcg@10",
        "LRURec: best NDCG@10",
        "The ranker: best NDCG@10",
        "tuning the ranker",
        "Popularity: the first choice of verbalizer",
        "A random choice of 39 rows",
        "← target",
    ):
        assert words in text
    for name in ("moved", "by-retriever_rank", "by-history_length", "by-target_count", "places-0"):
        assert f'id="{name}"' in page
    assert text.index("Changed from the defaults") < text.index("All keys")
    assert page.count("* plotly.js v") == 1  # the banner of its script


def test_it_is_written_again_without_a_model(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.load", None)
    out = tmp_path / "again.html"
    main([str(trained.checkpoint), f"--out={out}"])
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes() == trained.checkpoint.with_suffix(".html").read_bytes()
    with pytest.raises(SystemExit, match="none.report.json.*is not there"):
        main([str(tmp_path / "none.pth")])


def test_a_ranker_of_weight_0_is_shown_alone_and_moves_nothing(tiny_run):
    text = page_of(tiny_run | {"rerank_fusion": 0})
    assert "The weight of verbalizer beside the retriever was set to 0" in text
    assert "The final order is therefore the retriever&#39;s." in text
    assert "The order is the retriever's: no target moved." in text
    assert ">verbalizer</th>" in text and ">final: LRURec</th>" in text
    assert "probability by verbalizer</th>" in text and "first choice of verbalizer" in text


def test_the_retriever_alone(tiny_run):
    text = page_of(tiny_run | {"ranking_method": "none"})
    assert "This run has no scorer beside the retriever (ranking_method: none)" in text
    assert ">LRURec</th>" in text and "final:" not in text
    assert "probability by" not in text and "paired t-test" not in text
    assert "LRURec: best NDCG@10" in text and "The ranker: best" not in text
    assert "there are no choices to show" in text


def test_a_run_by_gauc_alone_has_its_page(tiny_run):
    """RecBole gives this metric as a float32, and without a cut-off."""
    text = page_of(tiny_run | QUICK | {"metrics": ["GAUC"], "valid_metric": "GAUC"})
    assert "gauc" in text.lower() and ">LRURec</th>" in text


def test_likelihood_has_probabilities_and_no_labels(tiny_run):
    text = page_of(tiny_run | {"ranking_method": "likelihood", "epochs": 0})
    assert "label</th>" not in text and "probability by likelihood</th>" in text
    assert "Places are shown by their labels" not in text


def test_each_scorer_of_a_fitted_fusion_has_its_stage_and_its_figure(tiny_run):
    run_recbole(config_dict=tiny_run | {"rerank_fusion": "auto", "evidence_items": 1})
    file = checkpoint_of(Path(tiny_run["checkpoint_dir"])).with_suffix(".html")
    page, text = file.read_text(), text_of(file.read_text())
    record = read_record(file.with_suffix(".report.json"))
    names = [stage.name for stage in record.stages]
    fused = ["LRURec + evidence", "LRURec + verbalizer", "LRURec + evidence + verbalizer"]
    assert names[:-1] == ["LRURec", *fused, "evidence", "verbalizer"]
    assert names[-1].startswith("final: LRURec")
    assert all(text.count(f'<th scope="row">{name}</th>') == 3 for name in names)
    assert "On validation" in text and "Fusion: evidence has weight" in text
    assert list(record.validation) == names
    assert 'id="places-0"' in page and 'id="places-1"' in page
    assert text.count("Places are shown by their labels in the prompt.") == 1
    assert "probability by evidence</th>" in text and "probability by verbalizer</th>" in text


def test_no_target_among_the_candidates(tiny_run):
    trainer, test = trained_trainer(tiny_run | {"rerank_candidates": 2, "epochs": 0})
    trainer.evaluate(test)
    missed = np.flatnonzero(trainer.report.users["rank:LRURec"] > 2)
    subset = test.dataset.copy(test.dataset.inter_feat[torch.from_numpy(missed)])
    trainer.evaluate(loader_like(test, trainer.config, subset))
    page = Path(trainer.saved_model_file).with_suffix(".html").read_text()
    text = text_of(page)
    assert text.count("None of the targets is among the candidates.") == 2
    assert "there are no choices to show" in text and 'id="moved"' not in page
    assert f"A random choice of {len(missed)} rows" in text and "not retrieved (rank" in text


def test_how_the_weights_came_about_stands_on_top(trained):
    record = read_record(trained.checkpoint.with_suffix(".report.json"))
    step = FusionStep("verbalizer", 0.1, 0.01, {"verbalizer": 0.7})
    fitted = replace(record, fusion=Fusion({"verbalizer": 0.7}, steps=(step,), n_rows=30))
    assert notes(fitted) == fitted.fusion.summary().splitlines()
    step = FusionStep("verbalizer", 0.0, 0.6, {"verbalizer": 0.0})
    useless = replace(record, fusion=Fusion({"verbalizer": 0.0}, steps=(step,), n_rows=30))
    assert notes(useless)[0].startswith("Fusion: verbalizer has weight 0")
    assert "The final order is therefore the retriever's." in notes(useless)[-1]
    assert notes(replace(record, fusion=Fusion({"verbalizer": 0.5}))) == [
        "The weight of verbalizer beside the retriever was set to 0.5 (rerank_fusion)."
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (131, "2 min 11 s"), (7500, "2 h 5 min")],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


# --- safety ---------------------------------------------------------------------------------------


def test_every_text_is_escaped(hostile):
    page = hostile.with_suffix(".html").read_text(encoding="utf-8")
    assert "<script>window.hurt" not in page and "<img src=x" not in page
    assert "&lt;/script&gt;&lt;script&gt;window.hurt=1&lt;/script&gt; &amp; &#34;x&#34;" in page
    assert "User &lt;b&gt;7" in page and "<b>7" not in page
    assert all("window.hurt" not in script for script in SCRIPT.findall(page))


def test_labels_are_escaped_within_the_script(trained):
    record = read_record(trained.checkpoint.with_suffix(".report.json"))
    users = read_users(trained.checkpoint.with_suffix(".users.csv"))
    labels = ["</script><script>window.hurt=1</script>", "\u2028", *"CDEFGH"]
    page = render(replace(record, labels={"verbalizer": labels}), users)
    assert "<script>window.hurt" not in page and "\u2028" not in page
    assert page.count("</script>") == render(record, users).count("</script>")


# --- which runs write one -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"saved": False}, {"verbose": False}])
def test_runs_that_save_nothing_or_are_quiet_write_none(tiny_run, options):
    trainer, test = trained_trainer(tiny_run | QUICK, **options)
    trainer.evaluate(test, load_best_model=False)
    folder = Path(tiny_run["checkpoint_dir"])
    assert not [*folder.glob("*.html"), *folder.glob("*.report.json")]


def test_a_report_that_fails_costs_no_run(tiny_run, monkeypatch, caplog):
    def fail(checkpoint):
        raise OSError("No space left on device")

    trainer, test = trained_trainer(tiny_run | QUICK)
    monkeypatch.setattr(write_module, "write_page", fail)
    result = trainer.evaluate(test)
    assert result == trainer.report.retriever.metrics
    (error,) = [line for line in caplog.records if line.levelname == "ERROR"]
    assert "the run itself is complete" in error.message and "No space left" in caplog.text
    monkeypatch.undo()
    assert write_page(Path(trainer.saved_model_file)).is_file()  # all that it needs is there


def test_a_page_that_breaks_off_leaves_the_former_one(trained, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("the former page")
    monkeypatch.setattr(Path, "replace", None)  # as if the process were killed before
    with pytest.raises(TypeError):
        write_page(trained.checkpoint, out)
    assert out.read_text() == "the former page"


def test_installing_twice_writes_once():
    before = list(LlamaRecTrainer.after_test)
    report.install()
    assert LlamaRecTrainer.after_test == before
    assert before.count(write_module.write_report) == 1


def test_without_the_extra_the_commands_tell_how_to_install_it(trained, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'pip install "\.\[report\]"'):
        main([str(trained.checkpoint)])
