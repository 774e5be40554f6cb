"""The campaigns find nothing, and would find what is wrong."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, checkpoint_of, tiny_settings

from recbole_llamarec.files import read_tensors, save_tensors
from recbole_llamarec.tuning.score_log import ScoreLog
from recbole_llamarec.tuning.state import RunState

sys.path.append(str(ROOT / "benchmarks"))

import robustness
from robustness_damage import Target, damaged, targets
from robustness_flips import flip_bits, loaders
from robustness_soak import Answer, difference, soak, summary

from recbole_llamarec import report

EXPECTED = robustness.Outcome("ndcg 0.1", "digest", ("LRURec.pth", "pth"), 10.0)


@pytest.mark.slow
def test_a_run_killed_while_it_trains_ends_as_if_nothing_had_happened(capsys):
    with pytest.raises(SystemExit) as ended:
        robustness.main(["--kills", "1", "--seed", "4"])
    assert ended.value.code == 0
    assert "1 kills, 0 findings" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed, finding",
    [
        ({"metrics": "ndcg 0.2"}, "metrics ndcg 0.2"),
        ({"users": "other"}, "users' table"),
        ({"files": ("LRURec.pth", "lock", "pth")}, "files"),
        ({"files": ("pth",)}, "files"),
    ],
)
def test_whatever_differs_from_an_uninterrupted_run_is_a_finding(changed, finding):
    assert robustness.findings(EXPECTED, EXPECTED) == ""
    assert finding in robustness.findings(EXPECTED, replace(EXPECTED, **changed))


@pytest.fixture
def interrupted(tmp_path):
    """The state of an interrupted run; its scored batches lie beside it."""
    state = RunState(tmp_path / "LlamaRec-cut", {"seed": "1"}, 10.0)
    state.put("tuning", {"step": 3, "adapter": {"w": torch.randn(50, 8)}})
    log = ScoreLog(state.stem, 0, 1, 10.0).begin("fusion")
    log.add(torch.randn(8, 7))
    log.write()
    state.close()
    return state.file


def test_no_flipped_bit_in_any_file_of_a_run_goes_unnoticed(trained, interrupted):
    kinds = loaders(trained.checkpoint, interrupted)
    assert len(kinds) == 5
    for kind, (path, load) in kinds.items():
        tally = flip_bits(path, load, 24, random.Random(1))
        assert tally.findings == [], kind
        assert tally.refused + tally.equal == 24 and tally.refused > 20


def test_flips_that_change_what_is_loaded_are_findings(tmp_path):
    """In a file without a checksum, and in one whose error does not say which it is."""
    file = tmp_path / "plain.pth"
    torch.save({"w": torch.randn(1000)}, file)
    plain = flip_bits(file, lambda f: torch.load(f, weights_only=True), 24, random.Random(1))
    assert any("loaded as other values" in finding for finding in plain.findings)
    assert len(plain.findings) + plain.equal + plain.refused == 24
    save_tensors({"w": torch.randn(1000)}, file)
    nameless = flip_bits(file, read_tensors, 24, random.Random(1))
    assert "the error does not name it" in nameless.findings[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5])
def test_damaged_files_are_refused_or_read_as_if_they_were_whole(seed, tmp_path, tiny_llama):
    from recbole.quick_start import run_recbole

    report.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("sys.argv", ["test"])
        keys = {"rerank_fusion": "auto", "evidence_items": 1, "epochs": 0}
        run_recbole(config_dict=tiny_settings(tmp_path, tiny_llama) | keys)
    checkpoint, generator = checkpoint_of(tmp_path / "saved"), random.Random(seed)
    for kind, target in targets(checkpoint, tmp_path / "data", tmp_path).items():
        tally = damaged(target, 44, generator)
        assert tally.findings == [], kind
        assert tally.refused > tally.equal, kind


def test_whatever_else_becomes_of_a_damaged_file_is_a_finding(tmp_path):
    def cut(content: bytes, generator: random.Random) -> bytes:
        return content[:1]

    file = tmp_path / "file"
    for read, words in [
        (lambda file: file.read_bytes(), "read as other values"),
        (lambda file: {b"whole": 1}[file.read_bytes()], "KeyError"),
        (lambda file: float(file.read_bytes() == b"whole" or "x"), "does not say where"),
    ]:
        file.write_bytes(b"whole")
        tally = damaged(Target(file, read, {"cut": cut}), 3, random.Random(1))
        assert len(tally.findings) == 3 and all(words in finding for finding in tally.findings)
        assert file.read_bytes() == b"whole"


@pytest.mark.slow
def test_a_service_under_load_answers_as_when_it_is_quiet(trained):
    tally = soak(trained.checkpoint, Path(trained.data_path), 0.05, seed=1, tolerance=1e-4)
    assert tally.wrong == []
    assert tally.counts["under way at SIGTERM"] == 12
    assert min(tally.counts[kind] for kind in ("good", "bad", "hung up")) > 0
    assert len(tally.memory) == 2
    assert summary(tally)[1] == "wrong or lost answers: 0"


ITEM = {"item": "i1", "text": "a", "score": 0.5, "probability": None, "retriever_rank": 1}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, ""),
        ({"score": 0.50009}, ""),
        ({"score": 0.502}, "score 0.502 instead of 0.5"),
        ({"score": None}, "score None instead of 0.5"),
        ({"probability": 0.1}, "probability 0.1 instead of None"),
        ({"text": "b"}, "other items or another order"),
        ({"item": "i2"}, "another item"),
    ],
)
def test_whatever_differs_from_the_quiet_answer_is_a_finding(changed, fault):
    quiet = Answer(200, json.dumps({"items": [ITEM]}).encode())
    found = Answer(200, json.dumps({"items": [ITEM | changed]}).encode())
    assert difference(found, quiet, 1e-4) == fault
    assert "status 0 instead of 200" in difference(Answer(0, b"reset"), quiet, 1e-4)
    assert "instead of" in difference(Answer(422, b"a"), Answer(422, b"b"), 1e-4)
