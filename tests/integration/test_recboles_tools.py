"""The tools that RecBole has around its models take LlamaRec as any other model.

``run_recbole_group.py`` and ``significance_test.py`` stand in RecBole's repository alone, and are
no part of its package: what is tested is what they call, in the same way. The functions of a case
study are RecBole's own.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_settings
from recbole.quick_start import load_data_and_model, run, run_recbole
from recbole.utils import list_to_latex
from recbole.utils.case_study import full_sort_scores, full_sort_topk
from runs import METRICS
from scipy import stats


@pytest.fixture
def config_file(workdir, tiny_llama) -> str:
    """A property file for LlamaRec without a language model, and for RecBole's own models."""
    settings = tiny_settings(workdir, tiny_llama)
    del settings["model"], settings["dataset"]
    settings |= {"ranking_method": "none", "train_neg_sample_args": None, "train_batch_size": 64}
    settings |= {"evidence_items": 3, "rerank_fusion": "auto"}
    file = workdir / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def test_a_group_of_models_is_one_table(config_file):
    """As ``run_recbole_group.py --model_list=GRU4Rec,LlamaRec`` does."""
    tables: dict[str, list[dict]] = {"best_valid_result": [], "test_result": []}
    names = ["GRU4Rec", "LlamaRec"]
    for name in names:
        options = {"nproc": 1, "world_size": -1, "ip": "localhost", "port": "5678"}
        result = run(name, "tiny", config_file_list=[config_file], group_offset=0, **options)
        for kind, rows in tables.items():
            rows.append({"Model": name, **result[kind]})
    columns = list(result["best_valid_result"])
    for rows in tables.values():
        table, tex = list_to_latex(
            convert_list=rows, bigger_flag=result["valid_score_bigger"], subset_columns=columns
        )
        assert table["Model"].tolist() == names and set(table) == {"Model", *METRICS}
        assert table.drop(columns="Model").map(lambda value: 0 <= value <= 1).all(axis=None)
        best = max(row["ndcg@10"] for row in rows)
        assert rf"\bfseries {best:.4f}" in tex and "LlamaRec" in tex


def test_runs_of_several_seeds_are_compared(config_file):
    """As ``significance_test.py --model_ours=LlamaRec --model_baseline=GRU4Rec`` does."""
    random.seed(2023)
    seeds = [random.randint(0, 2**32 - 1) for _ in range(3)]
    values: dict[str, dict[str, list[float]]] = {}
    for name in ("LlamaRec", "GRU4Rec"):
        of_model = values.setdefault(name, {})
        for seed in seeds:
            result = run_recbole(
                model=name,
                dataset="tiny",
                config_file_list=[config_file],
                config_dict={"seed": seed},
            )
            for metric, value in result["test_result"].items():
                of_model.setdefault(metric, []).append(value)
    assert set(values["LlamaRec"]) == set(values["GRU4Rec"]) == set(METRICS)
    assert len(set(values["LlamaRec"]["ndcg@10"])) > 1  # seeds differ
    for metric, ours in values["LlamaRec"].items():
        test = stats.ttest_rel(ours, values["GRU4Rec"][metric], alternative="less")
        assert 0 <= test.pvalue <= 1


def test_a_case_study_shows_the_evaluators_order(trained, test_rows):
    """As the example of RecBole's documentation does."""
    users, _, tokens = test_rows
    _, model, dataset, _, _, test = load_data_and_model(
        model_file=str(Path(trained.checkpoint)), data_path=trained.data_path
    )
    wanted = dataset.token2id(dataset.uid_field, users[:3])
    scores, items = full_sort_topk(wanted, model, test, k=10)
    assert scores.tolist() == [[-float(place) for place in range(10)]] * 3
    found = dataset.id2token(dataset.iid_field, items.cpu())
    assert found.tolist() == [row[:10] for row in tokens[:3]]
    every = full_sort_scores(wanted, model, test, device=torch.device("cpu"))
    assert every.shape == (3, dataset.item_num) and (every[:, 0] == -torch.inf).all()
    place = tokens[0].index("i7")
    assert every[0, dataset.token2id(dataset.iid_field, ["i7"])].tolist() == [-float(place)]
