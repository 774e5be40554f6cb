"""The evidence without a language model, on the small data set, whose items follow by number."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest
import yaml
from helpers import ROOT


@pytest.fixture(scope="module")
def evidence():
    """The script as a module; benchmarks/ is no package."""
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "benchmarks" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_are_fused_with_the_retriever(evidence, trained, workdir, capsys):
    keys = ("load_col", "MAX_ITEM_LIST_LENGTH", "rerank_candidates", "data_path")
    settings = {key: trained.settings[key] for key in keys} | {"show_progress": False}
    (workdir / "tiny.yaml").write_text(yaml.safe_dump(settings))
    checkpoint = trained.checkpoint.with_suffix(".LRURec.pth")
    evidence.main(["tiny", "--retriever", str(checkpoint), "--config_files", "tiny.yaml"])
    out = capsys.readouterr().out
    assert "Fusion: the evidence " in out
    table = {
        cells[0].strip(): [float(cell) for cell in cells[1:]]
        for line in out.splitlines()
        if line.startswith("| ") and "@" not in line
        for cells in [line.strip("|").split("|")]
    }
    users = pd.read_csv(trained.checkpoint.with_suffix(".users.csv"))
    assert table["LRURec"][1] == pytest.approx(users["retriever_ndcg@10"].mean(), abs=1e-4)
    assert table["evidence alone"][2] > 2 * 5 / 60  # Recall@5, and what chance comes to
