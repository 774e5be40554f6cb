"""A suite on the small data set: its cells, the choice on its grid, interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import ROOT, environment, write_dataset
from results import add_cell, read_cells, read_users
from run import Runner
from small_suite import line_of, result, small_suite, suite_file
from suite import CELL_LINE, best_choice, read_suite, retriever_file

from recbole_llamarec.settings import llamarec_keys


def add_setting(file: Path) -> None:
    """A setting of LlamaRec that is measured on validation alone."""
    content = yaml.safe_load(file.read_text())
    *_, llamarec = content["models"]
    settings = {**llamarec["settings"], "epochs": 0, "prompt_max_history": 1}
    setting = {"label": "one title", "validation_only": True, "settings": settings}
    content["models"].append({**llamarec, **setting})
    file.write_text(yaml.safe_dump(content))


def test_a_grid_decides_what_runs_at_the_other_seeds(tmp_path):
    suite = read_suite(suite_file(tmp_path))
    assert suite.n_cells == 4
    first = list(suite.cells({}))
    assert [cell.name for cell in first] == [
        "tiny.LRURec.dropout_prob=0.1.seed=1",
        "tiny.LRURec.dropout_prob=0.5.seed=1",
    ]
    assert first[1].settings["embedding_dropout_prob"] == 0.5
    assert best_choice(first, {first[0].id: result(0.3)}) is None
    results = {first[0].id: result(0.1), first[1].id: result(0.2)}
    later = list(suite.cells(results))
    assert [cell.name for cell in later[2:]] == [
        "tiny.LRURec.dropout_prob=0.5.seed=2",
        "tiny.LlamaRec.seed=1",
    ]
    assert later[3].retriever == first[1].id
    assert not any(cell.validation_only for cell in later)


def test_a_wanted_cell_gets_its_retriever_trained_again(tmp_path):
    """Its checkpoint is gone, and --only names the ranker alone."""
    suite = read_suite(suite_file(tmp_path))
    runner = Runner(suite, tmp_path, tmp_path / "out", tmp_path / "work", threads=1)
    for _ in range(2):  # the second time, the grid's choice is known
        for cell in runner.open_cells("LRURec"):
            score = cell.settings["dropout_prob"]
            add_cell(runner.out, line_of(cell, 0.1, valid_score=score))
    assert runner.open_cells("LRURec") == []
    (retriever,) = runner.open_cells("LlamaRec")
    assert retriever.name == "tiny.LRURec.dropout_prob=0.5.seed=1"
    (runner.work / retriever.id).mkdir(parents=True)
    retriever_file(runner.work / retriever.id).touch()
    assert [cell.name for cell in runner.open_cells("LlamaRec")] == ["tiny.LlamaRec.seed=1"]


def test_an_id_depends_on_the_settings_and_not_on_the_label(tmp_path):
    _, (cell, *_) = small_suite(tmp_path)
    assert replace(cell, label="another", choice={}).id == cell.id
    assert len({cell.id, *(replace(cell, seed=seed).id for seed in (7, 8))}) == 3
    assert replace(cell, run_settings={**cell.run_settings, "topk": [5]}).id != cell.id
    assert replace(cell, settings=dict(reversed(cell.settings.items()))).id == cell.id


def test_a_cell_finished_before_the_suite_was_stopped_is_collected_and_not_run(tmp_path):
    suite, (cell, *_) = small_suite(tmp_path)
    runner = Runner(suite, tmp_path, tmp_path / "out", tmp_path / "work", threads=1)
    (runner.work / cell.id).mkdir(parents=True)
    (runner.work / cell.id / CELL_LINE).write_text(json.dumps(line_of(cell, 0.1)))
    runner.run(cell)
    assert not (runner.work / cell.id / "log.txt").exists()
    runner.collect(cell)
    assert set(runner.results()) == {cell.id}
    assert not (runner.work / cell.id / CELL_LINE).exists()


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
    """Each cell has an id and a name of its own, and every key that it sets of LlamaRec exists."""
    suite = read_suite(file)
    results: dict = {}
    for _ in range(4):  # what runs behind a grid is known when the grid is finished
        cells = list(suite.cells(results))
        results = {cell.id: result(0.1) for cell in cells}
    assert len({cell.id for cell in cells}) == len(cells) == suite.n_cells
    assert len({cell.name for cell in cells}) == len(cells)
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
    lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if "cell.py" in line and str(work) in line]


def test_a_suite_that_is_killed_takes_its_cell_and_the_cells_processes_with_it(tmp_path):
    write_dataset(tmp_path / "data")
    killed = start(tmp_path, suite_file(tmp_path), "killed")
    work = tmp_path / "work" / "killed"
    while not (cells := running_cells(work)):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.05)
    assert len(cells) == 1
    killed.kill()
    killed.wait()
    end = time.monotonic() + 10
    while running_cells(work) and time.monotonic() < end:
        time.sleep(0.05)
    assert running_cells(work) == []


def test_what_a_script_started_ends_with_its_parent_too(tmp_path):
    script, started = tmp_path / "script.py", tmp_path / "started"
    script.write_text(
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "with_parent.py"), str(script)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    while not (started.is_file() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int(started.read_text()))
    process.stdin.close()  # as the parent's end does
    assert process.wait(timeout=10) == -signal.SIGKILL
    child.wait(timeout=10)
    assert not child.is_running()


def figures(folder: Path) -> dict:
    """All lines, by id, without what differs between equal runs: times and memory."""
    lines = {id_: dict(line) for id_, line in read_cells(folder).items()}
    for line in lines.values():
        for key in ("seconds", "peak_memory_mb", "finished"):
            del line[key]
        line["curve"] = [score for _, score in line["curve"]]
    return lines


@pytest.mark.slow
def test_a_killed_suite_goes_on_to_the_same_tables(tmp_path, tiny_llama):
    write_dataset(tmp_path / "data")
    suite = suite_file(tmp_path, tiny_llama)
    add_setting(suite)
    whole = start(tmp_path, suite, "whole")
    assert whole.wait(timeout=500) == 0, whole.stderr.read().decode()

    killed = start(tmp_path, suite, "killed")
    while not read_cells(tmp_path / "killed"):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.1)
    killed.send_signal(signal.SIGTERM)
    assert killed.wait(timeout=60) == 143
    assert running_cells(tmp_path / "work" / "killed") == []
    finished = read_cells(tmp_path / "killed")
    assert 0 < len(finished) < 5

    again = start(tmp_path, suite, "killed")
    assert again.wait(timeout=500) == 0
    assert b"5 of 5 cells are finished" in again.stdout.read()
    lines = read_cells(tmp_path / "killed")
    assert {id_: lines[id_] for id_ in finished} == finished  # not run again
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    files = sorted(file.name for file in (tmp_path / "killed").iterdir())
    assert files == ["README.md", "cells.jsonl", "users.csv.gz"]
    assert not list((tmp_path / "work").glob("*/*/LlamaRec-*"))  # the retrievers alone stay

    page = (tmp_path / "killed" / "README.md").read_text()
    assert "| LlamaRec | ours |" in page and "| final - LRURec | p |" in page
    by_label = {line["label"] or line["model"]: line for line in lines.values()}
    llamarec, setting = by_label["LlamaRec"], by_label["one title"]
    users = read_users(tmp_path / "killed")
    assert set(users["cell"]) == {llamarec["id"]}
    of_final = llamarec["test"]["final"]["ndcg@10"]
    assert users["ndcg@10:final"].mean() == pytest.approx(of_final, abs=1e-4)
    assert (users["rank:final"] <= 8).sum() == (users["rank:LRURec"] <= 8).sum()

    assert "test" not in setting and setting["validation_only"]
    assert "one title" not in page.split("## Settings")[0].split("## T")[1]
    fused = f"{setting['valid_stages']['final']['ndcg@10']:.4f}"
    assert f"| one title | {setting['fusion']['n_rows']} |" in page and f"| {fused} |" in page
