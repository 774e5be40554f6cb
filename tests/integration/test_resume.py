"""Training that is stopped before any epoch and goes on equals training that is not stopped."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import free_port, write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_seed

from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.integration.resume import random_state, resumable, set_random_state

EPOCHS = 4


class Stopped(Exception):
    """Stands for the end of a process."""


class Training:
    """A trainer, its data, and what becomes of them."""

    def __init__(self, folder: Path, model: str, file: str = "best.pth", **settings: Any) -> None:
        if not (folder / "data").exists():
            write_dataset(folder / "data")
        given = {
            "data_path": str(folder / "data"),
            "checkpoint_dir": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": 5,  # shorter than histories: LRURec has several windows a user
            "epochs": EPOCHS,
            "train_batch_size": 16,
            "topk": [5],
            "valid_metric": "NDCG@5",
            "metrics": ["NDCG"],
            "show_progress": False,
        }
        if model != "FPMC":
            given["train_neg_sample_args"] = None
        config = Config(model=model, dataset="tiny", config_dict=given | settings)
        init_seed(config["seed"] + config["local_rank"], True)
        self.train, self.valid, _ = data_preparation(config, create_dataset(config))
        network = get_model(model)(config, self.train._dataset)
        self.trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        self.trainer.saved_model_file = str(folder / file)

    def run(self, save: Callable[[dict], None], saved: dict | None = None) -> dict[str, Any]:
        """Train to the end, or until ``save`` raises."""
        resumable(self.trainer, self.train, saved, save)
        score, result = self.trainer.fit(self.train, self.valid, verbose=False)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the first process writes the file
        return {
            "score": score,
            "result": result,
            "losses": self.trainer.train_loss_dict,
            "last": self.trainer.model.state_dict(),
            "best": load_checkpoint(self.trainer.saved_model_file)["state_dict"],
        }


def through_a_file(state: dict) -> dict:
    """The state as another process reads it, by the unpickler that reads tensors alone."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def stopping_before(epoch: int, states: list[dict]) -> Callable[[dict], None]:
    def save(state: dict) -> None:
        states.append(through_a_file(state))
        if state["epoch"] == epoch:
            raise Stopped

    return save


def assert_equal(one: dict, other: dict) -> None:
    assert one["score"] == other["score"] and one["result"] == other["result"]
    assert one["losses"] == other["losses"] and list(one["losses"]) == list(range(EPOCHS))
    for name in ("last", "best"):
        assert one[name].keys() == other[name].keys()
        assert all(one[name][key].equal(other[name][key]) for key in one[name])


@pytest.mark.parametrize("model", ["LRURec", "SASRec", "FPMC"])
def test_stopped_before_any_epoch_it_goes_on_to_the_same_bits(workdir, model):
    torch.set_num_threads(1)
    plain = Training(workdir, model)
    score, _ = plain.trainer.fit(plain.train, plain.valid, verbose=False)
    whole = Training(workdir, model).run(lambda state: None)
    assert whole["score"] == score  # handing out the state changes nothing
    assert len(set(whole["losses"].values())) == EPOCHS
    for epoch in range(EPOCHS):
        states: list[dict] = []
        with pytest.raises(Stopped):
            Training(workdir, model, "stopped.pth").run(stopping_before(epoch, states))
        torch.rand(7), np.random.rand(7)
        # a file of another name: the state carries the best weights
        going_on = Training(workdir, model, f"{epoch}.pth")
        assert_equal(going_on.run(lambda state: None, states[-1]), whole)


def test_a_training_may_be_stopped_again_and_again(workdir):
    whole = Training(workdir, "SASRec").run(lambda state: None)
    state = None
    for epoch in range(1, EPOCHS):
        states: list[dict] = []
        with pytest.raises(Stopped):
            Training(workdir, "SASRec", "stopped.pth").run(stopping_before(epoch, states), state)
        state = states[-1]
    assert_equal(Training(workdir, "SASRec", "last.pth").run(lambda state: None, state), whole)


def test_early_stopping_counts_on(workdir):
    """The patience used up before the interruption is not given again."""
    training = Training(workdir, "FPMC", stopping_step=2, epochs=9)
    training.trainer.best_valid_score = 2.0  # no epoch gets better, and none is saved
    states: list[dict] = []
    with pytest.raises(Stopped):
        training.run(stopping_before(2, states))
    epochs: list[int] = []
    going_on = Training(workdir, "FPMC", stopping_step=2, epochs=9)
    resumable(
        going_on.trainer, going_on.train, states[-1], lambda state: epochs.append(state["epoch"])
    )
    score, result = going_on.trainer.fit(going_on.train, going_on.valid, verbose=False)
    assert (epochs, score, result) == ([2], 2.0, None)


def test_going_on_leaves_the_callers_state_as_it_is(workdir):
    states: list[dict] = []
    with pytest.raises(Stopped):
        Training(workdir, "SASRec").run(stopping_before(2, states))
    exp_avg = states[-1]["optimizer"]["state"][0]["exp_avg"]
    before = exp_avg.clone()
    Training(workdir, "SASRec").run(lambda state: None, states[-1])
    assert exp_avg.equal(before)


def two_trainings(rank: int, folder: Path, ports: list[int]) -> None:
    """What each of two processes does: train to the end; stop, and go on."""
    torch.set_num_threads(1)

    def training(file: str) -> Training:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        place = {"local_rank": rank, "offset": 0, "nproc": 2, "world_size": 2}
        place |= {"ip": "localhost", "port": ports.pop()}
        return Training(folder, "SASRec", file, **place)

    whole = training("whole.pth").run(lambda state: None)
    states: list[dict] = []
    with pytest.raises(Stopped):
        training("stopped.pth").run(stopping_before(2, states))
    of_ranks = states[-1]["random"]
    assert len(of_ranks) == 2 and not of_ranks[0]["torch"].equal(of_ranks[1]["torch"])
    assert_equal(training("stopped.pth").run(lambda state: None, states[-1]), whole)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_each_of_two_processes_goes_on_with_its_random_state(workdir):
    write_dataset(workdir / "data")
    ports = [free_port() for _ in range(3)]
    torch.multiprocessing.spawn(two_trainings, args=(workdir, ports), nprocs=2)


class TwoPhases(Trainer):
    """Trains twice over, so that an epoch's number does not say where it is."""

    def fit(self, *args, **options):
        super().fit(*args, **options)
        return super().fit(*args, **options)


def test_a_trainer_with_a_loop_of_its_own_is_left_as_it_is(workdir, caplog):
    training = Training(workdir, "FPMC")
    trainer = TwoPhases(training.trainer.config, training.trainer.model)
    with caplog.at_level(logging.INFO):
        resumable(trainer, training.train, None, lambda state: pytest.fail("it saves"))
    assert "FPMC cannot go on after an interruption (TwoPhases has a training loop" in caplog.text
    trainer.fit(training.train, training.valid, verbose=False)
    assert len(trainer.train_loss_dict) == EPOCHS


def test_a_model_whose_other_parameters_are_no_plain_values_is_left_as_it_is(workdir, caplog):
    training = Training(workdir, "FPMC")
    training.trainer.model.other_parameter_name = ["counts"]
    training.trainer.model.counts = np.ones(3)
    with caplog.at_level(logging.INFO):
        resumable(training.trainer, training.train, None, lambda state: pytest.fail("it saves"))
    training.trainer.fit(training.train, training.valid, verbose=False)
    assert "other_parameter is neither tensors nor plain values" in caplog.text


def test_all_generators_repeat_from_a_saved_random_state():
    import random

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), float(torch.rand(()))]

    device = torch.device("cpu")
    drawn()  # an odd number of normal values: one is kept for the next call
    state = through_a_file(random_state(device))
    expected = drawn()
    drawn()
    set_random_state(state, device)
    assert drawn() == expected
