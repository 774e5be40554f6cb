"""Without a ranker and without masking, LlamaRec's metrics are those of RecBole's own trainer.

The same retriever is trained twice from the same seed: by RecBole, and inside of LlamaRec. Every
way to split and order data that RecBole's documentation has for sequential models is compared, with
every ranking metric that RecBole registers.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers import write_dataset
from recbole.evaluator.register import metric_types
from recbole.utils import EvaluatorType, init_seed
from runs import run_of

RANKING = sorted(name for name, kind in metric_types.items() if kind == EvaluatorType.RANKING)
VALUES = sorted(name for name, kind in metric_types.items() if kind == EvaluatorType.VALUE)

LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
EVALUATIONS = {
    "leave one out, by user": LEAVE_ONE_OUT,
    "leave one out, validation alone": {**LEAVE_ONE_OUT, "split": {"LS": "valid_only"}},
    "leave one out, test alone": {**LEAVE_ONE_OUT, "split": {"LS": "test_only"}},
    "ratio, by user": {**LEAVE_ONE_OUT, "split": {"RS": [0.6, 0.2, 0.2]}},
    "ratio, over all": {**LEAVE_ONE_OUT, "split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "none"},
    "ratio, without validation": {**LEAVE_ONE_OUT, "split": {"RS": [0.8, 0.0, 0.2]}},
    "ratio over all, nothing said of groups": {"split": {"RS": [0.7, 0.1, 0.2]}, "order": "TO"},
}


def settings(tiny_run: dict, retriever: str, eval_args: dict, **changes) -> dict:
    shared = ("dataset", "data_path", "checkpoint_dir", "load_col", "show_progress")
    return {
        **{key: tiny_run[key] for key in shared},
        **{"MAX_ITEM_LIST_LENGTH": 10, "epochs": 2, "train_batch_size": 64, "seed": 5},
        **{"metrics": RANKING, "topk": [3, 10], "valid_metric": "MRR@10", "learning_rate": 0.01},
        **{"train_neg_sample_args": None, "metric_decimal_place": 6, "exact_chronology": False},
        **{"model": retriever, "eval_args": {**eval_args, "mode": "full"}, **changes},
    }


def as_retriever(run: dict) -> dict:
    own = {key: run[key] for key in ("epochs", "train_batch_size", "learning_rate")}
    others = {key: value for key, value in run.items() if key not in (*own, "model")}
    llamarec = {"rerank_mask_seen": False, "ranking_method": "none", "rerank_candidates": 8}
    return {**others, **llamarec, "model": "LlamaRec", "retriever": run["model"],
            "retriever_config": own}  # fmt: skip


def results(run: dict) -> list[dict]:
    """Validation and test metrics; a part that is empty gives none."""
    init_seed(run["seed"], True)
    started = run_of(run)
    started.trainer.fit(started.train, started.valid)
    return [dict(started.trainer.evaluate(part) or {}) for part in (started.valid, started.test)]


def compare(run: dict) -> list[dict]:
    theirs, ours = results(run), results(as_retriever(run))
    for expected, found in zip(theirs, ours, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-4), name
    return theirs


@pytest.mark.parametrize("name", EVALUATIONS)
def test_metrics_are_recboles_for_each_way_to_split(tiny_run, name):
    valid, test = compare(settings(tiny_run, "SASRec", EVALUATIONS[name]))
    assert {"gauc", "ndcg@10", "itemcoverage@3", "giniindex@10"} <= (test or valid).keys()


@pytest.mark.parametrize("retriever", ["LRURec", "GRU4Rec", "NPE"])
def test_metrics_are_recboles_for_other_retrievers(tiny_run, retriever):
    compare(settings(tiny_run, retriever, LEAVE_ONE_OUT))


def test_data_without_repetition_is_refused_as_by_recbole(tiny_run):
    """RecBole evaluates sequential models on whatever comes next, repeated or not."""
    run = settings(tiny_run, "SASRec", LEAVE_ONE_OUT, repeatable=False)
    for each in (run, as_retriever(run)):
        with pytest.raises(ValueError, match="repeatable"):
            run_of(each)


def test_metrics_are_recboles_with_sampled_negatives(tiny_run):
    """FPMC learns by BPR: the negatives of both runs are drawn by the same numbers."""
    changes = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    compare(settings(tiny_run, "FPMC", LEAVE_ONE_OUT, **changes))


def write_parts(folder: Path, n_users: int = 30, n_items: int = 40) -> None:
    """A ready-made split: train, valid and test rows with their histories."""
    write_dataset(folder, "ready", n_items=n_items)
    generator = random.Random(3)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in range(1, n_users + 1):
        items = generator.sample(range(n_items), 7)
        for length in range(1, 7):
            part = "test" if length == 6 else "valid" if length == 5 else "train"
            history = " ".join(f"i{item}" for item in items[:length])
            parts[part].append(f"{user}\t{history}\ti{items[length]}")
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    for part, lines in parts.items():
        text = "\n".join([head, *lines]) + "\n"
        (folder / "ready" / f"ready.{part}.inter").write_text(text)


def test_metrics_are_recboles_for_a_ready_made_split(tiny_run):
    write_parts(Path(tiny_run["data_path"]))
    run = settings(
        tiny_run, "SASRec", LEAVE_ONE_OUT, dataset="ready", alias_of_item_id=["item_id_list"],
        benchmark_filename=["train", "valid", "test"],
        load_col={"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id", "title"]},
    )  # fmt: skip
    compare(run)


@pytest.mark.parametrize("metric", VALUES)
def test_metrics_of_single_values_are_refused_with_their_key(tiny_run, metric):
    run = as_retriever(settings(tiny_run, "SASRec", LEAVE_ONE_OUT))
    with pytest.raises(ValueError, match="metrics: .*"):
        run_of({**run, "metrics": [metric], "valid_metric": metric})


@pytest.mark.parametrize("mode", ["uni100", "pop100", "labeled"])
def test_other_modes_than_full_ranking_are_refused_with_their_key(tiny_run, mode):
    run = as_retriever(settings(tiny_run, "SASRec", LEAVE_ONE_OUT))
    with pytest.raises(ValueError, match="eval_args: mode"):
        run_of({**run, "eval_args": {**LEAVE_ONE_OUT, "mode": mode}})
