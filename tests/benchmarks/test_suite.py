"""A suite on the small data set: its cells, the choice on its grid, interruption, tables."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from helpers import ROOT, environment, write_dataset

from recbole_llamarec.settings import llamarec_keys

sys.path.insert(0, str(ROOT / "benchmarks"))

from run import Runner
from suite import best_choice, read_suite, result_file, retriever_file
from tables import Row, latex, markdown_comparison, rows_of, significance
from validation_table import HEAD, validation_row, validation_rows


def suite_file(folder: Path, llama: Path | str = "none") -> Path:
    """A grid of two LRURec cells, the better one at a second seed, and LlamaRec at one seed."""
    data = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "MAX_ITEM_LIST_LENGTH": 20,
        "rerank_candidates": 8,
    }
    content = {
        "metrics": ["NDCG", "Recall"],
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "seeds": [1, 2],
        "datasets": {"tiny": None},
        "models": [
            {
                "name": "LRURec",
                "grid": {"dropout_prob, embedding_dropout_prob": [0.1, 0.5]},
                "settings": {"epochs": 3, "train_batch_size": 16},
                "data_settings": data,
            },
            {
                "name": "LlamaRec",
                "retriever": "LRURec",
                "seeds": 1,
                "settings": {
                    "llm_name_or_path": str(llama),
                    "prompt_max_history": 5,
                    "train_max_samples": 8,
                    "train_batch_size": 8,
                },
                "data_settings": data,
            },
        ],
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def add_setting(file: Path) -> None:
    """A setting of LlamaRec that is measured on validation alone."""
    content = yaml.safe_load(file.read_text())
    *_, llamarec = content["models"]
    settings = {**llamarec["settings"], "epochs": 0, "prompt_max_history": 1}
    setting = {"label": "one title", "validation_only": True, "settings": settings}
    content["models"].append({**llamarec, **setting})
    file.write_text(yaml.safe_dump(content))


def result(score: float) -> dict:
    return {"valid_score": score}


def test_a_grid_decides_what_runs_at_the_other_seeds(tmp_path):
    suite = read_suite(suite_file(tmp_path))
    assert suite.n_cells == 4
    first = list(suite.cells({}))
    assert [cell.identifier for cell in first] == [
        "tiny.LRURec.dropout_prob=0.1.seed=1",
        "tiny.LRURec.dropout_prob=0.5.seed=1",
    ]
    assert first[1].settings["embedding_dropout_prob"] == 0.5
    assert best_choice(first, {first[0].identifier: result(0.3)}) is None
    results = {first[0].identifier: result(0.1), first[1].identifier: result(0.2)}
    later = list(suite.cells(results))
    assert [cell.identifier for cell in later[2:]] == [
        "tiny.LRURec.dropout_prob=0.5.seed=2",
        "tiny.LlamaRec.seed=1",
    ]
    assert later[3].retriever == first[1].identifier
    assert not any(cell.validation_only for cell in later)


def test_a_wanted_cell_gets_its_retriever_trained_again(tmp_path):
    """Its checkpoint is gone, and --only names the ranker alone."""
    suite = read_suite(suite_file(tmp_path))
    runner = Runner(suite, tmp_path, tmp_path / "out", tmp_path / "work", threads=1)
    (tmp_path / "out" / "cells").mkdir(parents=True)
    for _ in range(2):  # the second time, the grid's choice is known
        for cell in runner.open_cells("LRURec"):
            content = {"cell": asdict(cell), "valid_score": cell.settings["dropout_prob"]}
            result_file(runner.out, cell.identifier).write_text(json.dumps(content))
    assert runner.open_cells("LRURec") == []
    (retriever,) = runner.open_cells("LlamaRec")
    assert retriever.identifier == "tiny.LRURec.dropout_prob=0.5.seed=1"
    (runner.work / retriever.identifier).mkdir(parents=True)
    retriever_file(runner.work / retriever.identifier).touch()
    assert [cell.identifier for cell in runner.open_cells("LlamaRec")] == ["tiny.LlamaRec.seed=1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": [{"name": "LRURec", "gird": {}}]}, ["LRURec", "gird", "allowed"]),
        ({"models": [{"name": "LlamaRec", "retriever": "SASRec"}]}, ["LlamaRec", "SASRec"]),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path, change, words):
    file = suite_file(tmp_path)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    with pytest.raises(ValueError) as error:
        read_suite(file)
    assert all(word in str(error.value) for word in [str(file), *words])


@pytest.mark.parametrize(
    "file", (ROOT / "benchmarks" / "suites").glob("*.yaml"), ids=lambda f: f.stem
)
def test_the_suites_can_be_read(file):
    """Each cell has a name of its own, and every key of LlamaRec that it sets is one."""
    suite = read_suite(file)
    results: dict = {}
    for _ in range(4):  # what runs behind a grid is known when the grid is finished
        cells = list(suite.cells(results))
        results = {cell.identifier: result(0.1) for cell in cells}
    assert len({cell.identifier for cell in cells}) == len(cells) == suite.n_cells
    keys = {key for cell in cells if cell.model == "LlamaRec" for key in cell.settings}
    assert keys <= {*llamarec_keys(), "epochs"}


def start(folder: Path, suite: Path, out: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), str(suite)]
    command += ["--data", str(folder / "data"), "--out", str(folder / out), "--threads", "1"]
    command += ["--work", str(folder / "work" / out)]
    bare = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        command, env=bare, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def running_cells(work: Path) -> list[str]:
    """Command lines of the processes that still run a cell in ``work``."""
    lines = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return [" ".join(line) for line in lines if str(work) in " ".join(line)]


def figures(folder: Path) -> dict:
    """The tables without what differs between equal runs: times and memory."""
    content = json.loads((folder / "results.json").read_text())
    for rows in (content["test"], content["retrieved"]):
        for row in rows:
            for key in ("training, min", "peak memory, MB"):
                del row[key]
    return content


@pytest.mark.slow
def test_a_killed_suite_goes_on_to_the_same_tables(tmp_path, tiny_llama):
    write_dataset(tmp_path / "data")
    suite = suite_file(tmp_path, tiny_llama)
    add_setting(suite)
    whole = start(tmp_path, suite, "whole")
    assert whole.wait(timeout=500) == 0, whole.stderr.read().decode()

    killed = start(tmp_path, suite, "killed")
    cells = tmp_path / "killed" / "cells"
    while not list(cells.glob("*.json")):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.1)
    killed.send_signal(signal.SIGTERM)
    assert killed.wait(timeout=60) == 143
    assert running_cells(tmp_path / "work" / "killed") == []
    finished = {file.name: file.stat().st_mtime_ns for file in cells.glob("*.json")}
    assert 0 < len(finished) < 5

    again = start(tmp_path, suite, "killed")
    assert again.wait(timeout=500) == 0
    assert b"5 of 5 cells are finished" in again.stdout.read()
    for name, written in finished.items():
        assert (cells / name).stat().st_mtime_ns == written  # not run again
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")

    page = (tmp_path / "killed" / "results.md").read_text()
    assert "| LlamaRec | ours |" in page and "LlamaRec - retriever" in page
    users = pd.read_csv(cells / "tiny.LlamaRec.seed=1.users.csv.gz")
    (row,) = [r for r in figures(tmp_path / "killed")["test"] if r["model"] == "LlamaRec"]
    assert users["llamarec_ndcg@10"].mean() == pytest.approx(row["ours"]["ndcg@10"][0], abs=1e-4)
    assert (users["llamarec_rank"] <= 8).sum() == (users["retriever_rank"] <= 8).sum()

    setting = json.loads((cells / "tiny.one_title.seed=1.json").read_text())
    assert (
        "test" not in setting and "one title" not in page.split("## Settings")[0].split("## T")[1]
    )
    assert not list(cells.glob("tiny.one_title*.users*"))
    fused = f"{setting['valid_stages']['fused']['ndcg@10']:.4f}"
    assert f"| one title | {setting['fusion']['n_rows']} |" in page and f"| {fused} |" in page


# --- tables -------------------------------------------------------------------------------------


def row(model: str, values: list[float], published: float | None = None) -> Row:
    known = {} if published is None else {"ndcg@10": published}
    return Row("a_set", model, {"ndcg@10": values}, known, {})


def test_ours_stand_beside_the_published_figures():
    table = markdown_comparison([row("LRURec", [0.06, 0.08], 0.0705), row("NARM", [0.05])])
    assert "| LRURec | ours | 0.0700 ± 0.0141 |" in table
    assert "|  | published | 0.0705 |\n|  | ratio | 0.99 |" in table
    assert table.endswith("| NARM | ours | 0.0500 |")  # the paper has no such row


def test_latex_marks_the_best():
    table = latex([row("LRURec", [0.06, 0.08]), row("NARM", [0.05])])
    assert r"a\_set & LRURec & \textbf{0.0700 $\pm$ 0.0141} \\" in table
    assert r"a\_set & NARM & 0.0500 \\" in table


def test_a_setting_has_its_gain_and_its_time():
    stages = {"retriever": {"ndcg@10": 0.1}, "ranker": {"ndcg@10": 0.05}, "fused": {"ndcg@10": 0.2}}
    fusion = {"n_rows": 50, "weight": 0.3, "gain": 0.04, "p_value": 0.002, "evidence": None}
    seconds = {"stages": {"label prior and fusion": 25.0, "tuning the ranker": 90.0}}
    cell = {"cell": {"label": "letters", "settings": {"epochs": 1}}, "valid_stages": stages}
    cell |= {"fusion": fusion, "seconds": seconds}
    expected = ["letters", "50", "0.1000", "–", "0.0500", "0.2000", "–", "0.0400", "0.002"]
    assert validation_row(cell, "ndcg@10") == [*expected, "0.300", "0.50", "1.5"]
    evidence = {"gain": 0.08}
    cell |= {"fusion": {**fusion, "evidence": evidence}, "cell": {**cell["cell"], "settings": {}}}
    cell["valid_stages"] = {**stages, "with evidence": {"ndcg@10": 0.15}}
    line = validation_row(cell, "ndcg@10")
    assert line[3] == "0.1500" and line[6] == "0.0800" and line[-1] == "–"
    assert len(line) == len(HEAD)
    assert validation_rows([cell, {**cell, "fusion": None}], "ndcg@10") == [line]


def test_significance_averages_each_user_over_seeds(tmp_path):
    suite = read_suite(suite_file(tmp_path))
    first = list(suite.cells({}))
    results = {cell.identifier: result(0.1) for cell in first}
    llamarec = [c for c in suite.cells(results) if c.model == "LlamaRec"]
    cells = []
    for cell, shift in zip(llamarec * 2, (0.0, 0.2), strict=True):
        cells.append({"cell": {**asdict(cell), "seed": int(10 * shift)}, "test": {"ndcg@10": 0}})
        users = pd.DataFrame(
            {
                "user_id": ["a", "b", "c"],
                "item_id": ["x", "y", "z"],
                "retriever_ndcg@10": [0.1, 0.2, 0.3],
                "llamarec_ndcg@10": [0.1 + shift, 0.2 + shift, 0.31 + shift],
            }
        )
        name = f"tiny.LlamaRec.seed={int(10 * shift)}.users.csv.gz"
        (tmp_path / "cells").mkdir(exist_ok=True)
        users.to_csv(tmp_path / "cells" / name, index=False)
    (test,) = significance(cells, tmp_path).values()
    assert test["users"] == 3
    assert test["difference"] == pytest.approx(0.1 + 0.01 / 3)
    assert test["p"] < 0.01
    assert significance(cells, tmp_path / "elsewhere") == {}


def test_the_published_figures_fit_together():
    """LlamaRec's gains that the paper's text states, from its own table."""
    from tables import PAPER, read_published

    paper = read_published()[PAPER]
    stated = paper["stated_gains"]["over_LRURec_percent"]["ml-latest-small"]
    table = paper["table_1"]["ml-latest-small"]
    for metric, gain in stated.items():
        found = 100 * (table["LlamaRec"][metric] / table["LRURec"][metric] - 1)
        assert found == pytest.approx(gain, abs=0.02)
    assert rows_of(read_suite(ROOT / "benchmarks/suites/paper.yaml"), {}, "test", "table_1") == []
