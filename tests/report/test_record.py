"""What a run leaves for its report."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

from recbole_llamarec import analysis
from recbole_llamarec.report.__main__ import main
from recbole_llamarec.report.record import read_record, write_record
from recbole_llamarec.tuning.curve import TrainingCurve
from recbole_llamarec.tuning.run_log import Journal


def test_a_record_is_read_as_it_was_written(trained, tmp_path):
    file = trained.checkpoint.with_suffix(".report.json")
    record = read_record(file)
    assert record.checkpoint == trained.checkpoint.name
    assert record.counts == {"users": 40, "items": 60}
    write_record(record, tmp_path / "again.json")
    assert read_record(tmp_path / "again.json") == record
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_curves_and_times_are_those_of_the_run(trained):
    record = read_record(trained.checkpoint.with_suffix(".report.json"))
    assert list(record.retriever_curve.losses) == list(record.retriever_curve.scores) == [0, 1, 2]
    assert list(record.ranker_curve.losses) == [1, 2] and list(record.ranker_curve.scores) == [2]
    losses = list(record.retriever_curve.losses.values())
    assert losses == sorted(losses, reverse=True)
    assert record.ranker_curve.scores[2] == pytest.approx(trained.result["best_valid_score"])
    assert list(record.seconds) == [
        "loading the language model",
        "training the retriever",
        "tuning the ranker",
        "fusion",
        "test of the retriever",
        "test of all stages",
    ]
    assert all(seconds >= 0 for seconds in record.seconds.values())


def test_times_are_measured():
    journal = Journal()
    with journal.timed("waiting"):
        time.sleep(0.05)
    assert 0.05 <= journal.seconds["waiting"] < 5


def test_the_best_step_is_the_last_of_equal_ones():
    curve = TrainingCurve(scores={0: 0.1, 1: 0.3, 2: 0.3, 3: 0.05})
    assert curve.best(bigger=True) == (2, 0.3)
    assert curve.best(bigger=False) == (3, 0.05)
    assert TrainingCurve().best(bigger=True) is None


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.report\.json.*is not there"):
        read_record(tmp_path / "none.report.json")
    file = tmp_path / "a.report.json"
    for text in ("{", '{"package_version": "1"}', "[]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"a\.report\.json.*is no record"):
            read_record(file)


def test_a_record_that_was_changed_is_named(trained, tmp_path):
    file = tmp_path / "a.report.json"
    whole = trained.checkpoint.with_suffix(".report.json").read_text()
    content = json.loads(whole)
    for changes, words in [
        ({"n_candidates": "8"}, "n_candidates"),
        ({"n_candidates": True}, "n_candidates"),
        ({"n_candidates": 9}, "changed since it was written"),
        ({"sample": content["sample"][1:]}, "changed since it was written"),
        ({"seconds": {"fusion": None}}, "seconds.fusion"),
        ({"stages": {}}, "stages"),
        ({"sha256": None}, "changed since"),
    ]:
        file.write_text(json.dumps(content | changes))
        with pytest.raises(ValueError, match=rf"(?s)a\.report\.json.*{words}.*restore a copy"):
            read_record(file)
    for damaged in (b"", whole.encode()[:-2], b"\xff" + whole.encode(), b"[" * 100_000):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"(?s)a\.report\.json.*is no record.*restore a copy"):
            read_record(file)
    del content["sha256"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.report\.json.*another version"):
        read_record(file)


def test_the_commands_name_damage_without_a_traceback(trained, tmp_path):
    """The record's own digest, and the table that it was written with."""
    for ending in (".report.json", ".users.csv"):
        shutil.copy(trained.checkpoint.with_suffix(ending), tmp_path / f"run{ending}")
    users = tmp_path / "run.users.csv"
    text = users.read_text()
    users.write_text(text.replace("history_length,target_count", "target_count,history_length"))
    with pytest.raises(SystemExit, match=r"run\.users\.csv, line 1"):
        main([str(tmp_path / "run.pth")])
    counts = text.splitlines()[1].split(",")
    place = text.splitlines()[0].split(",").index("target_count")
    counts[place] = str(int(counts[place]) + 1)
    users.write_text(text.replace(text.splitlines()[1], ",".join(counts)))
    with pytest.raises(SystemExit, match=r"run\.users\.csv.*another table than"):
        main([str(tmp_path / "run.pth")])
    users.write_text(text[:-1])
    with pytest.raises(SystemExit, match=r"run\.users\.csv, line \d+: the file ends within a line"):
        analysis.main([str(users)])


def test_metrics_that_are_no_numbers_do_not_make_a_record_unreadable(trained, tmp_path):
    from dataclasses import replace

    record = read_record(trained.checkpoint.with_suffix(".report.json"))
    losses = {1: float("nan"), 2: float("inf"), 3: 1.0}
    write_record(replace(record, ranker_curve=TrainingCurve(losses)), tmp_path / "r.json")
    found = read_record(tmp_path / "r.json").ranker_curve.losses
    assert np.isnan(found[1]) and found[2] == float("inf") and found[3] == 1.0
