"""Checkpoints are data, and a run that is killed leaves none by halves."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model
from recbole.trainer import Trainer
from recbole.utils import get_model

from recbole_llamarec.integration import checkpoints
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.integration.interruption import warn_of_interruption
from recbole_llamarec.integration.values import is_plain


def test_plain_values_of_a_pickled_checkpoint(tmp_path):
    file = tmp_path / "plain.pth"
    weight = torch.arange(6.0).view(2, 3)
    state = {"score": np.float64(0.5), "config": {"k": (1, "x"), "names": {"a"}}}
    tensors = {"w": weight.T, "row": weight[1], "p": torch.nn.Parameter(weight), "e": weight[:0]}
    others = {"flag": torch.tensor([True, False]), "half": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(state | {"state_dict": {**tensors, **others}}, file, pickle_protocol=4)
    loaded = load_checkpoint(file)
    assert loaded["score"] == 0.5
    assert loaded["config"] == {"k": (1, "x")}  # a set is left out
    for name, tensor in {**tensors, **others}.items():
        assert torch.equal(loaded["state_dict"][name], tensor)


def test_what_recbole_itself_pickles_is_read(trainer, workdir):
    checkpoints._recbole_save_checkpoint(trainer, 3, saved_model_file="recbole.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load("recbole.pth")
    loaded = load_checkpoint("recbole.pth")
    assert (loaded["epoch"], loaded["config"]["model"]) == (3, "FPMC")
    state = trainer.model.state_dict()
    assert loaded["state_dict"].keys() == state.keys()
    assert all(torch.equal(loaded["state_dict"][name], state[name]) for name in state)
    config, model, *_ = load_data_and_model("recbole.pth", "data")
    assert config["load_col"] == trainer.config["load_col"]
    assert torch.equal(model.UI_emb.weight, trainer.model.UI_emb.weight)
    trainer.resume_checkpoint("recbole.pth")
    assert trainer.start_epoch == 4


def test_a_checkpoint_holds_tensors_and_plain_values(trained):
    for file in (trained.checkpoint, trained.checkpoint.with_suffix(".LRURec.pth")):
        loaded = torch.load(file, weights_only=True)
        assert loaded["format"] == "recbole-llamarec 1"
        assert loaded["config"]["dataset"] == "tiny"
        assert is_plain(loaded)


def test_a_model_of_which_a_part_is_another_parameter(workdir):
    """SASRecF names its feature layer so; its weights stand in the state_dict as well."""
    write_dataset(workdir / "data")
    settings = {"data_path": "data", "train_neg_sample_args": None, "selected_features": ["year"]}
    settings["load_col"] = {
        "inter": ["user_id", "item_id", "timestamp"],
        "item": ["item_id", "year"],
    }
    config = Config(model="SASRecF", dataset="tiny", config_dict=settings)
    train, *_ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, get_model("SASRecF")(config, train._dataset))
    trainer._save_checkpoint(0, saved_model_file="model.pth")
    assert torch.load("model.pth", weights_only=True)["other_parameter"] == {}
    _, model, *_ = load_data_and_model("model.pth", "data")
    state = trainer.model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_torch_load_itself_is_left_alone(trained, workdir):
    load_data_and_model(str(trained.checkpoint), trained.data_path)
    torch.save({"a": {1, 2}, "b": print}, workdir / "other.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(workdir / "other.pth")


class Killed(Exception):
    """Stands for the end of a process in the midst of writing."""


@pytest.fixture
def trainer(workdir):
    write_dataset(workdir / "data")
    settings = {
        "data_path": str(workdir / "data"),
        "checkpoint_dir": str(workdir / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    }
    config = Config(model="FPMC", dataset="tiny", config_dict=settings)
    return Trainer(config, get_model("FPMC")(config, create_dataset(config)))


def test_writing_that_breaks_off_leaves_the_former_checkpoint(trainer, workdir, monkeypatch):
    trainer._save_checkpoint(0, verbose=False)
    (file,) = (workdir / "saved").iterdir()

    def killed_before_it_has_its_name(part):
        assert part.name == f"{file.name}.part"
        raise Killed

    monkeypatch.setattr("recbole_llamarec.files.flush", killed_before_it_has_its_name)
    with pytest.raises(Killed):
        trainer._save_checkpoint(1, verbose=False)
    assert [*(workdir / "saved").iterdir()] == [file]
    assert load_checkpoint(file)["epoch"] == 0


def test_a_flipped_bit_of_a_checkpoint_is_refused(trainer, workdir):
    trainer._save_checkpoint(0, verbose=False)
    (file,) = (workdir / "saved").iterdir()
    content = bytearray(file.read_bytes())
    weights = trainer.model.state_dict()["UI_emb.weight"].numpy().tobytes()
    content[content.index(weights[:64])] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name}.*checksum differs.*Copy it again, or train"):
        load_checkpoint(file)


def test_a_checkpoint_of_ours_without_its_checksum_is_read_with_a_warning(trainer, workdir, caplog):
    trainer._save_checkpoint(0, verbose=False)
    (file,) = (workdir / "saved").iterdir()
    checkpoint = load_checkpoint(file)
    assert "not checked" not in caplog.text
    torch.save(checkpoint, file)
    assert load_checkpoint(file)["epoch"] == 0
    assert f"{str(file)!r} is not checked" in caplog.text


def test_a_training_loop_of_its_own_does_not_say_whether_it_has_ended(trainer, workdir, caplog):
    class OtherTrainer(Trainer):
        def fit(self, *arguments, **options):
            self._save_checkpoint(0, verbose=False)

    other = OtherTrainer(trainer.config, trainer.model)
    other.saved_model_file = str(workdir / "other.pth")
    other.fit()
    checkpoint = load_checkpoint(workdir / "other.pth")
    assert "finished" not in checkpoint
    warn_of_interruption(checkpoint, "other.pth")
    assert "interrupted" not in caplog.text


def test_the_log_names_the_checkpoint_and_not_its_unfinished_file(trainer, workdir, caplog):
    with caplog.at_level("INFO"):
        trainer._save_checkpoint(0, saved_model_file=str(workdir / "other.pth"))
    assert "other.pth" in caplog.text and ".part" not in caplog.text
    assert load_checkpoint(workdir / "other.pth")["epoch"] == 0
