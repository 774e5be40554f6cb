"""Building, training and loading a retriever inside a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recbole_llamarec.data.seen import SeenItems
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.retrieval.retriever import build_retriever, load_retriever, train_retriever


class Stopped(Exception):
    """Stands for the end of a process."""


def prepared(folder: Path, name: str):
    """An untrained retriever, its configuration, and the loaders of training and validation."""
    if not (folder / "data").exists():
        write_dataset(folder / "data")
    settings = {
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "valid_metric": "NDCG@5",
        "topk": [5],
        "metrics": ["NDCG"],
    }
    config = Config(model="LlamaRec", dataset="tiny", config_dict=settings)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    init_seed(1, True)
    overrides = {"epochs": 3, "train_batch_size": 16}
    retriever, derived = build_retriever(config, name, overrides, train_data.dataset)
    return retriever, derived, train_data, valid_data


def train(folder: Path, name: str, keep_file: bool = False, **options):
    """Train a retriever for three epochs; returns its curve and weights."""
    retriever, derived, train_data, valid_data = prepared(folder, name)
    file = folder / f"{name}.pth"
    log = str(folder / "log")
    curve = train_retriever(
        derived, retriever, train_data, valid_data, file, keep_file, False, log, **options
    )
    assert file.exists() == keep_file
    return curve, retriever.state_dict()


@pytest.mark.parametrize("name", ["LRURec", "FPMC"])
def test_a_training_that_was_stopped_has_the_same_curve_and_weights(workdir, name):
    options = {"seen": SeenItems.nothing()}
    curve, weights = train(workdir, name, **options)
    states = []

    def stopping(state):
        torch.save(state, workdir / "state.pt")
        states.append(torch.load(workdir / "state.pt", weights_only=True))
        if state["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(workdir, name, save=stopping, **options)
    (workdir / f"{name}.pth").unlink()  # the state does without it
    scores = []
    again, same = train(
        workdir,
        name,
        saved=states[-1],
        save=lambda state: None,
        callback_fn=lambda epoch, score: scores.append(epoch),
        **options,
    )
    assert (again.losses, again.scores) == (curve.losses, curve.scores)
    assert sorted(again.losses) == sorted(again.scores) == [0, 1, 2] and scores == [2]
    assert all(same[key].equal(weights[key]) for key in weights)


@pytest.mark.parametrize("name", ["LRURec", "FPMC"])
def test_a_retriever_of_an_interrupted_training_is_taken_with_a_warning(workdir, name, caplog):
    file = workdir / f"{name}.pth"

    def stopping(state):
        if state["epoch"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(workdir, name, keep_file=True, save=stopping)
    best = load_checkpoint(file)["epoch"] + 1
    retriever, *_ = prepared(workdir, name)
    load_retriever(retriever, name, file)
    assert f"{str(file)!r} was interrupted" in caplog.text
    assert f"of epoch {best} of at most 3" in caplog.text and best in (1, 2)
    caplog.clear()
    _, weights = train(workdir, name, keep_file=True)  # also loads the file that it has written
    load_retriever(retriever, name, file)
    assert "interrupted" not in caplog.text
    assert all(own.equal(weights[key]) for key, own in retriever.state_dict().items())
