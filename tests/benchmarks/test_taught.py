"""How much of what tuning teaches a scorer knows: fitted factors, and the command."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import taught
import torch


@pytest.fixture
def shares() -> torch.Tensor:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.softmax(logits, 1)


def test_a_scorer_is_scaled_and_the_teachers_logarithm_knows_all(shares):
    entropy = float(-(shares * shares.log()).sum(1).mean())
    assert taught.fitted_nats([torch.ones(40, 5)], shares) == pytest.approx(math.log(5))
    assert taught.fitted_nats([7 * shares.log()], shares) == pytest.approx(entropy, abs=1e-6)
    assert taught.fitted_nats([-shares.log()], shares) == pytest.approx(entropy, abs=1e-6)


def test_two_scorers_together_know_what_each_knows_a_part_of(shares):
    part = shares.log() * torch.tensor([1.0, 1, 0, 0, 0])
    rest = shares.log() - part
    entropy = float(-(shares * shares.log()).sum(1).mean())
    assert taught.fitted_nats([part], shares) > entropy + 0.1
    assert taught.fitted_nats([part, rest], shares) == pytest.approx(entropy, abs=1e-6)


def test_the_table_has_each_scorer_and_each_beside_popularity(shares):
    scores = {"verbalizer": shares.log(), "popularity": torch.zeros(40, 5)}
    lines = taught.table(scores, shares).splitlines()[2:]
    entropy = float(-(shares * shares.log()).sum(1).mean())
    assert lines == [
        f"| an even guess | {math.log(5):.3f} | 0% |",
        f"| verbalizer | {entropy:.3f} | 100% |",
        f"| popularity | {math.log(5):.3f} | 0% |",
        f"| popularity + verbalizer | {entropy:.3f} | 100% |",
        f"| the teacher | {entropy:.3f} | 100% |",
    ]


def test_a_choice_alone_as_the_teacher_has_no_entropy():
    assert "| the teacher | 0.000 | 100% |" in taught.table(
        {"popularity": torch.zeros(2, 3)}, torch.eye(3, dtype=torch.float64)[:2]
    )


def test_the_command_asks_on_what_tuning_draws(trained, capsys, monkeypatch):
    asked = []

    def scores(model, rows, pools, generator):
        asked.append((rows, pools))
        return {"verbalizer": torch.zeros(pools.shape), "popularity": torch.ones(pools.shape)}

    monkeypatch.setattr(taught, "scores_by_name", scores)
    taught.main(["--checkpoint", str(trained.checkpoint), "--data", str(trained.data_path)])
    printed = capsys.readouterr().out
    ((rows, pools),) = asked
    assert re.match(f"tiny, {len(rows)} rows of training\n", printed)
    targets = rows["item_id"].numpy()
    assert np.all((pools == targets[:, None]).sum(1) == 1)  # its target is a candidate


def test_the_command_prints_the_scorers_of_the_run(trained, capsys):
    command = ["--checkpoint", str(trained.checkpoint), "--data", str(trained.data_path)]
    taught.main([*command, "--rows", "10"])
    printed = capsys.readouterr().out
    names = re.findall(r"^\| ([\w +]+) \| \d", printed, flags=re.MULTILINE)
    assert names == [
        *("an even guess", "verbalizer", "LRURec", "popularity"),
        *("popularity + verbalizer", "popularity + LRURec", "the teacher"),
    ]
    taught.main([*command, "--rows", "10"])
    assert capsys.readouterr().out == printed
