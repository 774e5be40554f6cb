"""The campaigns find nothing, and would find what is wrong."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT

from recbole_llamarec.files import read_tensors, save_tensors
from recbole_llamarec.tuning.score_log import ScoreLog
from recbole_llamarec.tuning.state import RunState

sys.path.append(str(ROOT / "benchmarks"))

import robustness
from robustness_flips import flip_bits, loaders

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
