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

import recbole_llamarec.trainer as trainer_module
from recbole_llamarec.analysis import read_users
from recbole_llamarec.fusion import Fusion
from recbole_llamarec.integration.configs import loader_like
from recbole_llamarec.report.__main__ import main
from recbole_llamarec.report.page import duration, notes, render, write_page
from recbole_llamarec.report.record import read_record

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
        "The ranker alone decides the order",
        "(ceiling: Recall@8 = ",
        "LlamaRec - LRURec: ndcg@10",
        "LRURec: best NDCG@10",
        "The ranker: best NDCG@10",
        "tuning the ranker",
        "Popularity: the ranker&#39;s first choice",
        "A random choice of 39 rows",
        "← target",
    ):
        assert words in text
    for name in ("moved", "by-retriever_rank", "by-history_length", "by-target_count", "places"):
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


def test_a_ranker_of_weight_0_was_not_called(tiny_run):
    text = page_of(tiny_run | {"rerank_fusion": 0})
    assert "weight was set to 0" in text and "was therefore not called in the test" in text
    assert "The order is the retriever's: no target moved." in text
    assert "there are no choices to show" in text
    assert "probability</th>" not in text and "moved</th>" not in text
    assert "LlamaRec, retrieved" in text and "← target" in text


def test_the_retriever_alone(tiny_run):
    text = page_of(tiny_run | {"ranking_method": "none"})
    assert "This run has no ranker (ranking_method: none)" in text
    assert "LRURec, retrieved" in text and "LlamaRec, retrieved" not in text
    assert "probability</th>" not in text and "paired t-test" not in text
    assert "LRURec: best NDCG@10" in text and "The ranker: best" not in text


def test_generated_lists_have_no_probabilities(tiny_run):
    settings = {"ranking_method": "generate", "rerank_candidates": 2, "train_eval_rows": 1}
    text = page_of(tiny_run | settings)
    assert "The language model wrote the ranked titles" in text
    assert "letter</th>" in text and "probability</th>" not in text
    assert "Nothing was trained" not in text and "The ranker: best" not in text


def test_likelihood_has_probabilities_and_no_letters(tiny_run):
    text = page_of(tiny_run | {"ranking_method": "likelihood", "epochs": 0})
    assert "letter</th>" not in text and "probability</th>" in text
    assert "There are no labels, and no candidate sees another" in text


def test_no_target_among_the_candidates(tiny_run):
    trainer, test = trained_trainer(tiny_run | {"rerank_candidates": 2, "epochs": 0})
    trainer.evaluate(test)
    missed = np.flatnonzero(trainer.report.users["retriever_rank"] > 2)
    subset = test.dataset.copy(test.dataset.inter_feat[torch.from_numpy(missed)])
    trainer.evaluate(loader_like(test, trainer.config, subset))
    page = Path(trainer.saved_model_file).with_suffix(".html").read_text()
    text = text_of(page)
    assert text.count("None of the targets is among the candidates.") == 2
    assert "there are no choices to show" in text and 'id="moved"' not in page
    assert f"A random choice of {len(missed)} rows" in text and "not retrieved (rank" in text


def test_what_fusion_found_stands_on_top(trained):
    record = read_record(trained.checkpoint.with_suffix(".report.json"))
    fitted = replace(record, fusion_weight=0.7, fusion=Fusion(0.7, 0.1, 0.01, 30))
    assert notes(fitted) == [fitted.fusion.summary()]
    useless = replace(record, fusion_weight=0.0, fusion=Fusion(0.0, 0.0, 0.6, 30))
    assert notes(useless)[0].startswith("Fusion: the ranker adds nothing")
    assert "was therefore not called" in notes(useless)[1]
    assert notes(replace(record, fusion_weight=0.5)) == [
        "The ranker's weight was set to 0.5 (rerank_fusion)."
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
    page = render(replace(record, labels=labels), users)
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
    monkeypatch.setattr(trainer_module, "write_page", fail)
    result = trainer.evaluate(test)
    assert result == trainer.report.retriever
    (error,) = [line for line in caplog.records if line.levelname == "ERROR"]
    assert "the run itself is complete" in error.message and "No space left" in caplog.text
    monkeypatch.undo()
    assert write_page(Path(trainer.saved_model_file)).is_file()  # all that it needs is there
