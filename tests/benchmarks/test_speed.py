"""The speed benchmark with a tiny model: what it compares is the same, and its tables add up."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from xml.etree import ElementTree

import pytest
import torch
from helpers import ROOT, write_dataset

from recbole_llamarec.ranking.model.adapter import add_adapter
from recbole_llamarec.ranking.model.lora import LoraSettings

TUNED = {"tokens": 300.0, "elsewhere": 0.025, "flops": 1e11, "loss": 3.0}
EXACT = (
    "reference",
    "label rows and last position only",
    "and batches of similar length",
    "ours: packed",
)


@pytest.fixture(scope="module")
def scripts():
    """The benchmark's scripts as modules; benchmarks/ is no package."""
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script that is run
    names = ("speed", "speed_methods", "speed_table", "speed_tuning", "speed_worker")
    found = {name: importlib.import_module(name) for name in names}
    sys.path[:] = path
    return found


@pytest.fixture
def bench(scripts, workdir, tiny_llama, monkeypatch):
    """The benchmark over the small data set, all of whose models are the tiny one."""
    methods = scripts["speed_methods"]
    write_dataset(workdir / "data", n_items=60)
    monkeypatch.setattr(methods, "K", 8)
    monkeypatch.setattr(methods, "MODELS", dict.fromkeys(methods.MODELS, {"dtype": "float32"}))
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    return methods.Bench.of("tiny", str(workdir / "data"), str(tiny_llama), load_col=columns)


def test_what_is_compared_gives_the_same_scores(scripts, bench):
    histories, candidates = bench.sample(5, seed=1, n_candidates=8)
    methods = scripts["speed_methods"].ranking_methods(bench)
    scores = {name: method(histories, candidates) for name, method in methods.items()}
    assert set(EXACT) < set(methods)
    for name in EXACT:
        torch.testing.assert_close(scores[name], scores["reference"], atol=1e-4, rtol=1e-4)
    assert bench.model("float32").config._attn_implementation == "packed"  # as it was


def test_samples_are_as_they_are_asked_for(bench):
    histories, candidates = bench.sample(4, 0, n_history=3, n_candidates=6)
    assert bench.sample(4, 0, 3, 6) == (histories, candidates)
    assert max(map(len, histories)) == 3
    assert [len(set(pool)) for pool in candidates] == [6] * 4
    assert [len(history) for history in bench.sample(2, 0, n_history=0)[0]] == [0, 0]


def test_operations_are_those_of_the_layers(scripts, bench):
    model = bench.model("float32")
    n = 10
    weights = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)
    attention = 2 * 4 * 64 * n * (n + 1) / 2
    assert scripts["speed_methods"].flops_of_prompts(model, [n]) == 2 * weights * n + attention
    everywhere = LoraSettings(r=2, target_modules=scripts["speed_tuning"].LINEAR)
    tuned = add_adapter(model, everywhere, seed=0).get_base_model()
    inputs, outputs = 5 * 64 + 64 + 128, 64 + 2 * 32 + 64 + 2 * 128 + 64
    adapter = 2 * 2 * (inputs + outputs)  # two layers of rank 2
    expected = 4 * weights * n + 6 * adapter * n + 3 * attention
    assert scripts["speed_methods"].flops_of_tuning(tuned, [n]) == expected


def test_the_table_has_medians_and_paired_ratios(scripts):
    report = {
        "machine": {"cpu": "X", "threads": 2, "torch": "2", "transformers": "5"},
        "ranking": {
            "seconds": {
                "reference": [2.0, 4.0, 2.0],
                "ours: packed": [1.0, 1.0, 0.5],
                "ours: packed, bfloat16": [0.25, 0.25, 0.25],
            },
            "errors": {"reference": 0.0, "ours: packed": 2e-5},
            "matrix_rates": {"float32": [1e11], "bfloat16": [4e11]},
            "tokens": 600.0,
            "flops": 5e10,
            "prompts": 16,
        },
        "tuning": {
            "reference": [TUNED | {"seconds": 4.0, "peak_mb": 4000.0, "matrix_rate": 2e11}],
            "ours bfloat16": [TUNED | {"seconds": 0.5, "peak_mb": 1000.0, "matrix_rate": 4e11}],
            "ours bfloat16, titles": [
                TUNED | {"seconds": 0.25, "peak_mb": 800.0, "matrix_rate": 4e11, "tokens": 150.0}
            ],
        },
        "evaluation": {
            "float32": [
                {
                    "rows": 100,
                    "ranked": 20,
                    "seconds": 20.0,
                    "in_model": 19.0,
                    "metrics": {"ndcg@10": 0.1},
                    "retriever": {"ndcg@10": 0.2},
                }
            ]
        },
        "start": {"second run": [{"seconds": 7.0}]},
        "retrieval": {"all users": {"users": 10, "items": 5, "seconds": 1.0, "peak_mb": 9.0}},
        "growth": {"users": {"4": 1.0}},
        "profile": {"float32": {"linear layers": 0.75, "other": 0.25}},
    }
    text = scripts["speed_table"].table("ml-100k", report)
    assert "| ours: packed | 1.000 | 1.00 | 600 | 4.00 | 50% | 2.0e-05 |" in text
    assert "| ours: packed, bfloat16 | 0.250 | 4.00 | 2400 | 8.00 | 50% | – |" in text
    assert "float32 200 GFLOP/s, bfloat16 400 GFLOP/s" in text
    assert "| reference | 300 | 4.00 | 75 | 1.00 | 12% | 2.5% | 4000 | 1.00 | 3.00000 |" in text
    ours = "| ours bfloat16 | 300 | 0.50 | 600 | 8.00 | 50% | 2.5% | 1000 | 0.25 | 3.00000 |"
    assert ours in text
    titles = "| ours bfloat16, titles | 150 | 0.25 | 600 | 8.00 | 100% | 2.5% | 800 | 0.20 |"
    assert titles in text
    assert "| float32 | 100 | 20 | 20.0 | 10.0 | 5.0% | 0.1 | 0.2 |" in text
    assert "| linear layers | 75% |" in text
    assert "7.0 s" in text and "| 10 | 5 | 1.0 | 100.00 | 9 |" in text


def test_the_profile_and_the_plot(scripts, bench, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="benchmarks/requirements.txt is not installed")
    speed = scripts["speed"]
    monkeypatch.setattr(speed, "bench_of", lambda _: bench)
    found = speed.measure_profile(argparse.Namespace(prompts=2), {})
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["linear layers"] > 0 and shares["attention"] > 0
    speed.plot_growth({"users": {"4": 1.0, "8": 2.0}, "items": {"1": 1.0}}, tmp_path / "x.svg")
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
def test_a_large_catalogue_runs_in_a_process_of_its_own(scripts):
    run = scripts["speed_worker"].in_a_process("large_catalogue", {"users": 3, "items": 500})
    assert run["users"] == 3 and run["items"] == 500 and run["peak_mb"] > 0
    with pytest.raises(RuntimeError, match="large_catalogue .* failed"):
        scripts["speed_worker"].in_a_process("large_catalogue", {"items": 5})


def test_a_part_that_is_there_is_not_measured_again(scripts, tmp_path, monkeypatch, capsys):
    speed = scripts["speed"]
    calls = []
    run = {"seconds": 3.0, "peak_mb": 1.0}
    monkeypatch.setattr(speed, "in_a_process", lambda part, task: calls.append(part) or run)
    for _ in range(2):
        speed.main(["tiny", f"--out={tmp_path}", "--parts", "start", "--rounds=1"])
    assert calls == ["start"]
    assert "3.0 s" in (tmp_path / "tiny.md").read_text()
    capsys.readouterr()


@pytest.mark.slow
def test_the_quick_mode_runs_every_part(scripts, workdir, tiny_llama, monkeypatch, capsys):
    """With real models of all kinds; what has a process of its own runs in this one."""
    pytest.importorskip("matplotlib", reason="benchmarks/requirements.txt is not installed")
    folder = write_dataset(workdir / "data", "ml-latest-small", n_users=80)
    items = folder / "ml-latest-small.item"
    head, _, lines = items.read_text().partition("\n")
    head = head.replace("title:token_seq", "movie_title:token_seq")
    items.write_text(head.replace("year:token", "release_year:token") + "\n" + lines)
    speed, worker = scripts["speed"], scripts["speed_worker"]
    kinds = scripts["speed_methods"].MODELS
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setitem(kinds, "8 bits", kinds["bfloat16"])
    parts = []

    def in_this_process(part: str, task: dict) -> dict:
        parts.append(part)
        return json.loads(json.dumps(worker.run_part(part, json.loads(json.dumps(task)))))

    monkeypatch.setattr(speed, "in_a_process", in_this_process)
    given = [f"--data={workdir / 'data'}", f"--out={workdir}", f"--llm={tiny_llama}", "--quick"]
    speed.main(["ml-latest-small", *given])
    assert set(parts) == {"tuning", "evaluation", "start", "retrieval", "large_catalogue"}
    report = json.loads((workdir / "ml-latest-small.json").read_text())
    assert set(speed.PARTS) < set(report)
    assert report["tuning"]["ours"][0]["loss"] == pytest.approx(
        report["tuning"]["reference"][0]["loss"], abs=1e-4
    )
    for (run,) in report["evaluation"].values():
        assert run["rows"] == 8 and 0 < run["ranked"] <= 8
        assert 0 < run["in_model"] < run["seconds"]
    assert report["retrieval"]["all users"]["users"] > 50
    assert "## Where the time goes" in capsys.readouterr().out
    for ending in ("json", "md"):
        assert str(workdir) not in (workdir / f"ml-latest-small.{ending}").read_text()


@pytest.mark.parametrize("other", [["--quick"], ["--llm=another/model"]])
def test_figures_of_other_conditions_are_not_mixed(scripts, tmp_path, other):
    speed = scripts["speed"]
    (tmp_path / "tiny.json").write_text('{"start": {}}')  # as files of version 0.1 are
    with pytest.raises(ValueError, match=r"tiny.json .* name another --out"):
        speed.main(["tiny", f"--out={tmp_path}", *other])


@pytest.mark.parametrize("name", ["ml-100k", "amazon-beauty"])
def test_the_committed_table_is_that_of_the_committed_figures(scripts, name):
    folder = ROOT / "benchmarks" / "results" / "speed"
    report = json.loads((folder / f"{name}.json").read_text())
    assert scripts["speed_table"].table(name, report) == (folder / f"{name}.md").read_text()
