"""Every sequential recommender of RecBole works as a retriever, or is refused before any training.

One epoch each, then the checkpoint is loaded and asked for candidates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recbole.model.sequential_recommender as sequential_recommenders
from helpers import checkpoint_of
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.quick_start import run_recbole
from runs import run_of

from recbole_llamarec.recommender import Recommender

FEATURES = {"selected_features": ["year"]}
# Keys that a class needs beside its defaults, on this data.
NEEDS = {
    **dict.fromkeys(("FDSA", "GRU4RecF", "SASRecF"), FEATURES),
    **dict.fromkeys(("GRU4RecCPR", "SASRecCPR"), {"reranker_CAN_NUM": 10}),
}
REFUSED = {
    "DIN": "retriever: 'DIN' scores one given item at a time",
    "DIEN": "retriever: 'DIEN' scores one given item at a time",
    "GRU4RecKG": "retriever: GRU4RecKG cannot be built .*preload_weight",
    "KSR": "retriever: KSR cannot be built .*entity_id",
    "file": "retriever_file: .*candidates",
    "LlamaRec": "retriever: 'LlamaRec' is not a sequential retriever",
}
S3REC = {"item_attribute": "year", "hidden_size": 8, "inner_size": 8}


def sequential_classes() -> list[str]:
    return sorted(
        name
        for name, kind in vars(sequential_recommenders).items()
        if isinstance(kind, type) and issubclass(kind, SequentialRecommender)
    )


def settings(tiny_run: dict, retriever: str, **keys) -> dict:
    load_col = {**tiny_run["load_col"], "item": ["item_id", "title", "year"]}
    own = {"epochs": 1, "train_batch_size": 64, **keys}
    changes = {"ranking_method": "none", "retriever": retriever, "retriever_config": own}
    return {**tiny_run, "load_col": load_col, "seed": 7, **changes}


def check_retriever(run: dict) -> None:
    """Train it, and compare the loaded checkpoint's order with the trained one's."""
    started = run_of(run)
    started.trainer.fit(started.train, started.valid)
    result = started.trainer.evaluate(started.test)
    assert all(map(np.isfinite, result.values())) and 0 < result["ndcg@10"] <= 1
    loaded = Recommender.from_checkpoint(started.trainer.saved_model_file, run["data_path"])
    interaction, *_ = next(iter(started.test))
    started.model.eval()
    expected = started.model.full_sort_predict(interaction)
    assert (loaded.model.full_sort_predict(interaction) == expected).all()


@pytest.mark.parametrize("name", sorted({*sequential_classes()} - {*REFUSED, "S3Rec"}))
def test_it_is_trained_saved_and_loaded(tiny_run, name):
    check_retriever(settings(tiny_run, name, **NEEDS.get(name, {})))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_by_name_with_the_reason_before_any_training(tiny_run, name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        run_of(settings(tiny_run, name))


def test_s3rec_goes_on_from_what_recbole_has_pre_trained(tiny_run, monkeypatch):
    run = settings(tiny_run, "S3Rec")
    pre_training = {
        **{key: run[key] for key in ("data_path", "load_col", "checkpoint_dir", "show_progress")},
        **{"model": "S3Rec", "dataset": "tiny", "MAX_ITEM_LIST_LENGTH": 20, **S3REC},
        **{"train_stage": "pretrain", "pretrain_epochs": 1, "save_step": 1},
        **{"train_neg_sample_args": None},
    }
    monkeypatch.setattr("sys.argv", ["test"])
    run_recbole(config_dict=pre_training)
    file = checkpoint_of(Path(run["checkpoint_dir"]))
    keys = {**S3REC, "train_stage": "finetune", "pre_model_path": str(file)}
    check_retriever({**run, "retriever_config": {**run["retriever_config"], **keys}})


def test_s3rec_is_not_pre_trained_in_a_run(tiny_run):
    started = run_of(settings(tiny_run, "S3Rec", **S3REC))
    with pytest.raises(ValueError, match="train_stage: 'pretrain'.*train_stage: finetune"):
        started.trainer.fit(started.train, started.valid)


def test_a_key_that_does_not_suit_the_data_is_an_error_with_the_retrievers_name(tiny_run):
    started = run_of(settings(tiny_run, "GRU4RecCPR"))  # of 100 candidates among 60 items
    with pytest.raises(RuntimeError, match=r"retriever: GRU4RecCPR cannot.*retriever_config"):
        started.trainer.fit(started.train, started.valid)
