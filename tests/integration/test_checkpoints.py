"""Checkpoints run no code, and a run that is killed leaves none by halves."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import write_dataset
from recbole.config import Config
from recbole.data import create_dataset
from recbole.quick_start import load_data_and_model
from recbole.trainer import Trainer
from recbole.utils import get_model

from recbole_llamarec.integration.checkpoints import load_checkpoint


class Harmful:
    """Unpickles to a call of a harmless function, as an attack would to a harmful one."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_checkpoint_runs_no_code(tmp_path, capsys):
    file = tmp_path / "attack.pth"
    torch.save({"config": Harmful()}, file, pickle_protocol=4)
    with pytest.raises(ValueError, match=r"attack\.pth.*builtins\.print"):
        load_checkpoint(file)
    with pytest.raises(ValueError, match="print"):
        load_data_and_model(str(file))
    assert "never" not in capsys.readouterr().out


def test_a_checkpoint_names_only_classes_of_recbole(tmp_path):
    import recbole.utils.utils

    file = tmp_path / "function.pth"
    torch.save({"f": recbole.utils.utils.ensure_dir}, file, pickle_protocol=4)
    with pytest.raises(ValueError, match="ensure_dir"):
        load_checkpoint(file)


def test_plain_values_of_a_checkpoint(tmp_path):
    file = tmp_path / "plain.pth"
    state = {"score": np.float64(0.5), "weight": torch.ones(2), "names": {"a", "b"}}
    torch.save(state, file, pickle_protocol=4)
    loaded = load_checkpoint(file)
    assert loaded["score"] == 0.5 and torch.equal(loaded["weight"], torch.ones(2))
    assert loaded["names"] == {"a", "b"}


def test_torch_load_itself_is_left_alone(trained, workdir):
    load_data_and_model(str(trained.checkpoint))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(trained.checkpoint)


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

    def killed_in_the_midst(state, name, **options):
        with open(name, "wb") as unfinished:
            unfinished.write(b"half of a checkpoint")
        raise Killed

    monkeypatch.setattr("torch.save", killed_in_the_midst)
    with pytest.raises(Killed):
        trainer._save_checkpoint(1, verbose=False)
    assert [*(workdir / "saved").iterdir()] == [file]
    assert load_checkpoint(file)["epoch"] == 0


def test_the_log_names_the_checkpoint_and_not_its_unfinished_file(trainer, workdir, caplog):
    with caplog.at_level("INFO"):
        trainer._save_checkpoint(0, saved_model_file=str(workdir / "other.pth"))
    assert "other.pth" in caplog.text and ".part" not in caplog.text
    assert load_checkpoint(workdir / "other.pth")["epoch"] == 0
