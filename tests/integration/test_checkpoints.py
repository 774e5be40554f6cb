"""Checkpoints run no code, and a run that is killed leaves none by halves."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from recbole.quick_start import load_data_and_model

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
