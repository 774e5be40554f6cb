"""What RecBole's people run beside a single training: groups, tests of significance, case studies.

``run_recbole_group.py`` and ``significance_test.py`` lie in RecBole's repository and not in its
package. The scripts here call the same functions with the same arguments. Like RecBole's own they
know nothing of this package, which is imported beside them as docs/recbole.md says.
"""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import environment
from recbole.quick_start import load_data_and_model
from recbole.utils.case_study import full_sort_scores, full_sort_topk
from runs import METRICS

BESIDE = "import recbole_llamarec, runpy, sys; sys.argv = sys.argv[1:]; "
BESIDE += "runpy.run_path(sys.argv[0], run_name='__main__')"
GROUP = """
from recbole.quick_start import run
from recbole.utils import list_to_latex

if __name__ == "__main__":
    valid, test = [], []
    for model in ["LRURec", "LlamaRec"]:
        own = run(
            model, "tiny", config_file_list=["own.yaml"],
            nproc=1, world_size=-1, ip="localhost", port="5678", group_offset=0,
        )
        valid.append({"Model": model, **own["best_valid_result"]})
        test.append({"Model": model, **own["test_result"]})
        bigger, columns = own["valid_score_bigger"], list(own["best_valid_result"])
    for file, results in {"valid.tex": valid, "test.tex": test}.items():
        frame, latex = list_to_latex(
            convert_list=results, bigger_flag=bigger, subset_columns=columns
        )
        open(file, "w").write(latex)
"""
SIGNIFICANCE = """
import random
from collections import defaultdict

from recbole.quick_start import run_recbole
from scipy import stats

if __name__ == "__main__":
    random.seed(2023)
    seeds = [random.randint(0, 2**32 - 1) for _ in range(2)]
    values = {"LlamaRec": defaultdict(list), "LRURec": defaultdict(list)}
    for model, of_model in values.items():
        for seed in seeds:
            own = run_recbole(
                model=model, dataset="tiny", config_file_list=["own.yaml"],
                config_dict={"seed": seed},
            )
            for metric, value in own["test_result"].items():
                of_model[metric].append(value)
    with open("significant_test.txt", "w") as file:
        for metric in values["LRURec"]:
            ours, baseline = values["LlamaRec"][metric], values["LRURec"][metric]
            found = stats.ttest_rel(ours, baseline, alternative="less")
            print(metric, *ours, *baseline, found.statistic, found.pvalue, file=file)
"""


def write_script(script: str, folder: Path, settings: dict) -> Path:
    """Write a script, and the settings that it reads, into the working folder."""
    own = {name: value for name, value in settings.items() if name not in ("model", "dataset")}
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    (folder / "script.py").write_text(script)
    return folder / "script.py"


@pytest.mark.slow
def test_a_group_of_models_becomes_two_tables(workdir, tiny_run):
    script = write_script(GROUP, workdir, tiny_run)
    command = [sys.executable, "-c", BESIDE, script.name]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    for name in ("valid.tex", "test.tex"):
        text = (workdir / name).read_text()
        assert "LRURec" in text and "LlamaRec" in text and "recall@10" in text


def test_seeds_of_a_significance_test_give_metrics_of_each_run(workdir, tiny_run):
    cheap = {"ranking_method": "none", "evidence_items": 2, "rerank_fusion": "auto"}
    runpy.run_path(str(write_script(SIGNIFICANCE, workdir, tiny_run | cheap)), run_name="__main__")
    lines = (workdir / "significant_test.txt").read_text().splitlines()
    by_metric = {line.split()[0]: [float(part) for part in line.split()[1:]] for line in lines}
    assert set(by_metric) == set(METRICS)
    for *metrics, _, p_value in by_metric.values():
        assert all(0 <= metric <= 1 for metric in metrics)
        assert math.isnan(p_value) or 0 <= p_value <= 1  # of equal differences there is none
    first, second, *_ = by_metric["ndcg@10"]
    assert first != second  # the seed has an effect


@pytest.fixture
def loaded(trained, workdir):
    _, model, dataset, _, _, test = load_data_and_model(str(trained.checkpoint), trained.data_path)
    return model.eval(), dataset, test


def test_case_studies_are_of_the_final_order(loaded):
    model, dataset, test = loaded
    users = dataset.token2id(dataset.uid_field, ["7", "31", "2"])
    top_scores, top_items = full_sort_topk(users, model, test, k=5, device=model.device)
    scores = full_sort_scores(users, model, test, device=model.device)
    assert scores.shape == (3, dataset.item_num) and (scores[:, 0] == -torch.inf).all()
    assert torch.equal(*(torch.sort(scores, descending=True).indices[:, :5], top_items))
    assert torch.equal(scores.gather(1, top_items), top_scores)
    rows = test.dataset.inter_feat
    for user, of_user in zip(users, scores, strict=True):
        row = rows[np.flatnonzero(rows[dataset.uid_field].numpy() == user)]
        own = model.full_sort_predict(row)[0]
        assert torch.equal(of_user[1:], own[1:])
    tokens = dataset.id2token(dataset.iid_field, top_items)
    assert tokens.shape == (3, 5) and all(token.startswith("i") for token in tokens.flat)
