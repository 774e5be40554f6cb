"""The benchmark of kills finds nothing, and would find what is wrong."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import robustness

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
