"""The GPU's benchmark in its CPU mode, with a tiny model: every part of it runs, and is written."""

from __future__ import annotations

import os
import re
import subprocess

import gpu
import pytest
import torch
from helpers import ROOT

from recbole_llamarec.ranking.model.hardware import prefers_bfloat16


@pytest.fixture
def page(tiny_llama, tmp_path) -> str:
    options = ["--device", "cpu", "--small", "--prompts", "20", "--llm", str(tiny_llama)]
    gpu.main([*options, "--weights", "16-bit", "4-bit", "--out", str(tmp_path)])
    return (tmp_path / "README.md").read_text()


def test_all_is_measured_on_a_cpu(page):
    pytest.importorskip("bitsandbytes")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if "-bit | " in line]
    assert [row[:2] for row in rows] == [
        [weights, what]
        for weights in ("16-bit", "4-bit")
        for what in ("ranking", "tuning", "ranking, memory runs out")
    ]
    for row in rows:
        if "runs out" in row[1]:
            recovered = re.fullmatch(r"(\d+) times, then ([\d,]+) tokens a pass", row[5])
            failures, tokens = recovered.groups()
            assert 1 <= int(failures) <= 9  # log2 of 10**6 / 2000
            assert int(tokens.replace(",", "")) <= gpu.SPARE_TOKENS
        else:
            assert int(row[2].replace(",", "")) > 0 and float(row[3].split()[0]) > 0
    compared = (
        r"at most ([\d.e-]+) and on average by [\d.e-]+ nats; (\d+) of 20 prompts have the same"
    )
    difference, n_same = re.search(compared, page).groups()
    # in bfloat16 a random model's close scores change places
    rounds = prefers_bfloat16(torch.device("cpu"))
    assert float(difference) < (0.02 if rounds else 1e-4)
    assert rounds or int(n_same) == 20
    assert str(ROOT) not in page and "tmp" not in page


def test_without_a_gpu_the_way_to_try_it_out_is_named(capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch sees no GPU; try --device cpu --small" in capsys.readouterr().err


def test_a_folder_of_wheels_that_is_not_there_is_named():
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--wheels", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert "--wheels nowhere: no such folder" in done.stderr
