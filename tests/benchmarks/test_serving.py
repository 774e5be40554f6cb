"""The benchmark of the service: its requests, its rounds and its long run, on the tiny model."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

import numpy as np
import pytest
from helpers import ROOT
from running_service import run


@pytest.fixture(scope="module")
def scripts():
    """The benchmark's scripts as modules; benchmarks/ is no package."""
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script that is run
    found = {name: importlib.import_module(name) for name in ("serving", "serving_load")}
    sys.path[:] = path
    return found


@pytest.fixture
def serving(scripts, trained, monkeypatch):
    """The benchmark, whose services run in this process."""
    from recbole_llamarec.recommender import Recommender

    class InThisProcess:
        def __init__(self, checkpoint, data_path, *options):
            limits = dict(option.lstrip("-").replace("-", "_").split("=") for option in options)
            self.limits = {key: int(value) for key, value in limits.items()}

        def __enter__(self):
            served = Recommender.from_checkpoint(trained.checkpoint, trained.data_path)
            self.running = run(served, **self.limits)
            self.address = self.running.server.address
            return self

        def __exit__(self, *_):
            self.running.stop()

        def memory(self):
            return self.running.metric("process_resident_memory_bytes") / 1e6

    monkeypatch.setattr(scripts["serving"], "ServiceProcess", InThisProcess)
    return scripts["serving"]


def test_rounds_make_a_table(serving, trained, tmp_path):
    given = [f"--checkpoint={trained.checkpoint}", f"--data-path={trained.data_path}"]
    given += [f"--out={tmp_path}", "--clients=4"]
    serving.main([*given, "--rounds=2", "--seconds=0.2", "--paths", "recommend"])
    report = json.loads((tmp_path / "tiny.json").read_text())
    rounds = report["speed"]["rounds"]
    assert [one["way"] for one in rounds[:5]] == [
        *("one at a time", "batched"),
        *("one at a time", "batched", "batched, answers kept"),
    ]
    assert [one["way"] for one in rounds[5:7]] == ["batched", "one at a time"]  # in turn
    assert all(one["requests"] > 3 and one["p99_ms"] >= one["p50_ms"] for one in rounds)
    table = (tmp_path / "tiny.md").read_text()
    assert table.count("POST /recommend") == 5
    assert str(trained.checkpoint.parent) not in table
    serving.main([*given, "--soak=0.5"])
    report = json.loads((tmp_path / "tiny.json").read_text())
    soaked = report["soak"]
    assert (soaked["lost"], soaked["wrong"]) == (0, 0)
    assert soaked["requests"] > 10
    assert soaked["greatest_difference"] < 1e-4  # float32
    assert report["speed"]["rounds"] == rounds  # what was measured before stays
    assert "0 lost, 0 wrong" in (tmp_path / "tiny.md").read_text()


def test_requests_are_different_and_repeatable(serving, recommender):
    def some(path):
        return serving.made_up(recommender, path, 50, np.random.default_rng(1))

    for path in ("recommend", "rank"):
        requests = some(path)
        assert requests == some(path)
        assert len(set(requests)) == 50
    body = json.loads(some("rank")[0].body)
    assert len(set(body["candidates"])) == 8
    assert not set(body["candidates"]) & set(body["history"])
    repeated = serving.of_load("requests repeat", recommender, "rank", 50, np.random.default_rng(1))
    assert len(set(repeated)) <= serving.REPEATED < len(repeated)


ITEMS = [
    {"item": "a", "score": -0.5, "retriever_rank": 2},
    {"item": "b", "score": -1.0, "retriever_rank": 1},
    {"item": "c", "score": -1.1, "retriever_rank": 3},
]


@pytest.mark.parametrize(
    ("order", "moved", "expected"),
    [
        ("abc", 0.0, 0.0),
        ("abc", 0.05, 0.05),
        ("acb", 0.0, 0.0),  # a near tie
        ("bac", 0.0, None),  # the scores contradict it
        ("abc", 0.2, None),  # a score is another one
        ("ab", 0.0, None),
    ],
)
def test_wrong_answers_are_told_from_rounding(serving, order, moved, expected):
    by_name = {item["item"]: item for item in ITEMS}
    answer = [by_name[name] | {"score": by_name[name]["score"] + moved} for name in order]
    difference = serving.difference_of(answer, ITEMS, 0.1)
    assert difference == (None if expected is None else pytest.approx(expected))


def test_the_retrievers_order_must_be_exact(serving):
    items = [item | {"score": None} for item in ITEMS]
    assert serving.difference_of(items, items, 0.1) == 0
    assert serving.difference_of(items[::-1], items, 0.1) is None


def test_a_service_that_fails_ends_the_measurement(serving, scripts, monkeypatch):
    outcome = scripts["serving_load"].Outcome(0, 503, 0.1, b"busy")
    monkeypatch.setattr(serving, "ask", lambda *given: given[-1](outcome) or 1.0)
    options = argparse.Namespace(clients=1, seconds=1.0)
    with pytest.raises(RuntimeError, match="1 requests failed; .*busy"):
        serving.one_round(argparse.Namespace(address=None), [], options)


def test_a_process_that_does_not_start_says_why(scripts, tmp_path):
    service = scripts["serving_load"].ServiceProcess(tmp_path / "none.pth", "--queue=0")
    with pytest.raises(RuntimeError, match="queue is 0"):
        service.__enter__()


def test_a_broken_connection_is_noted(scripts):
    load, outcomes = scripts["serving_load"], []
    load.ask(("127.0.0.1", 9), [load.Request("/rank", b"")], 1, 0.01, outcomes.append)
    assert {outcome.status for outcome in outcomes} == {0}
