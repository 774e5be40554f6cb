"""Files made to do harm are opened in every way that there is, and do nothing.

Each would make a file, the canary, or write into a folder outside of the working directory.
"""

from __future__ import annotations

import builtins
import os
import pickle
import runpy
import shlex
import subprocess
import types
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.quick_start import load_data_and_model
from recbole.utils.utils import ensure_dir
from runs import untrained

from recbole_llamarec.integration import checkpoints, inert, values
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.retrieval.retriever import load_retriever

REFUSED = (ValueError, FileNotFoundError)


class Place(NamedTuple):
    """Where an attack takes place."""

    root: Path  # the working directory is in it
    outside: Path  # a folder of the attacker's, beside the working directory
    canary: Path  # what must not come to be

    @property
    def command(self) -> str:
        """A shell's."""
        return f"touch {shlex.quote(str(self.canary))}"

    @property
    def code(self) -> str:
        """Python that RecBole's ``Config`` would evaluate."""
        return f"__import__('os').system({self.command!r})"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    for name in ("work", "outside"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("sys.argv", ["test"])
    return Place(tmp_path, tmp_path / "outside", tmp_path / "canary")


class Calls:
    """Is pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickles(place: Place) -> dict[str, Any]:
    """Objects that do harm when they are unpickled."""
    nested = place.outside / "nested.pth"
    torch.save(Calls(os.system, place.command), nested)
    return {
        "os.system": Calls(os.system, place.command),
        "builtins.eval": Calls(builtins.eval, place.code),
        "builtins.exec": Calls(builtins.exec, place.code),
        "builtins.open": Calls(builtins.open, str(place.canary), "w"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(place.canary)]),
        "Config that evaluates": Calls(
            Config, "LRURec", "tiny", None, {"x": place.code, "train_neg_sample_args": None}
        ),
        "function of RecBole": Calls(ensure_dir, str(place.canary)),
        "nested torch.load": Calls(torch.load, str(nested), None, None),
        "nested pickle.loads": Calls(
            pickle.loads, pickle.dumps(Calls(os.system, place.command), protocol=4)
        ),
        "runpy": Calls(runpy.run_path, str(script_in(place))),
    }


def script_in(place: Place) -> Path:
    script = place.outside / "script.py"
    script.write_text(place.code)
    return script


PICKLES = [
    *("os.system", "builtins.eval", "builtins.exec", "builtins.open", "subprocess"),
    *("Config that evaluates", "function of RecBole", "nested torch.load", "nested pickle.loads"),
    "runpy",
]


def settings(place: Place) -> dict[str, dict[str, Any]]:
    """Settings of a file that lead to code, to pickles or out of the folder."""
    pickled = place.outside / "pickled.pth"
    pickled.write_bytes(pickle.dumps(Calls(os.system, place.command)))
    for name in ("tiny-LlamaRecDataset.pth", "tiny-for-LlamaRec-dataloader.pth"):
        (place.outside / name).write_bytes(pickled.read_bytes())
    outside, code = str(place.outside), place.code
    return {
        "text": {"llm_revision": code, "learning_rate": code},
        "key": {code: code},
        "text in retriever_config": {"retriever_config": {"hidden_size": code, "epochs": "3"}},
        "retriever_config as a text": {"retriever_config": code},
        "name of a retriever": {"retriever": code},
        "dataset_save_path": {"dataset_save_path": str(pickled)},
        "dataloaders_save_path": {"dataloaders_save_path": str(pickled)},
        "checkpoint_dir": {"checkpoint_dir": outside},
        "paths in retriever_config": {
            "retriever_config": {"checkpoint_dir": outside, "dataset_save_path": str(pickled)}
        },
        "saving": {"save_dataset": True, "save_dataloaders": True, "checkpoint_dir": outside},
        "data_path": {"data_path": f"{outside}/new", "dataset": "ml-1m"},
        "dataset above": {"dataset": "../../outside/x"},
        "absolute dataset": {"dataset": outside},
        "dataset of lines": {"dataset": "tiny\n/../x"},
        "files above": {"benchmark_filename": ["../../outside/x"] * 3},
        "model as a path": {"model": "../../outside/script"},
        "model as a module": {"model": "lrurec.os"},
        "teacher": {"model": "KD_DAGFM", "teacher": f"(lambda *_: {code})"},
        "llm_cache_dir": {"llm_cache_dir": f"{outside}/cache", "llm_name_or_path": "embedded"},
        "lora_adapter": {"lora_adapter": outside},
        "other machine": {"local_rank": 0, "nproc": 2, "ip": "192.0.2.1", "port": 1, "offset": 0},
        "metrics": {"metrics": [code]},
    }


SETTINGS = [
    *("text", "key", "text in retriever_config", "retriever_config as a text"),
    *("name of a retriever", "dataset_save_path", "dataloaders_save_path", "checkpoint_dir"),
    *("paths in retriever_config", "saving", "data_path", "dataset above", "absolute dataset"),
    *("dataset of lines", "files above", "model as a path", "model as a module", "teacher"),
    *("llm_cache_dir", "lora_adapter", "other machine", "metrics"),
]


def tree(place: Place) -> dict[Path, bytes]:
    """Every file that is not a log of RecBole's in the working directory."""
    logs = place.root / "work" / "log"
    return {
        file: file.read_bytes() if file.is_file() else b""
        for file in place.root.rglob("*")
        if logs not in file.parents and file != logs
    }


def opened(trained, place: Place, write: Callable[[dict[str, Any], Path], None]) -> list[str]:
    """Open hostile files in every way, and check that nothing came of it.

    Args:
        trained: a run whose checkpoints are made hostile.
        place: where.
        write: writes a checkpoint with something added.

    Returns:
        the ways that were not refused.
    """
    file, of_retriever = place.root / "hostile.pth", place.root / "hostile.LRURec.pth"
    write(load_checkpoint(trained.checkpoint), file)
    write(load_checkpoint(trained.checkpoint.with_suffix(".LRURec.pth")), of_retriever)
    model = untrained(trained.settings)
    trainer = types.SimpleNamespace(
        device="cpu",
        model=model.retriever,
        config={"model": "LRURec"},
        optimizer=types.SimpleNamespace(load_state_dict=lambda state: None),
        logger=model.logger,
    )
    ways = {
        "load": lambda: load_checkpoint(file),
        "data and model": lambda: load_data_and_model(str(file), trained.data_path),
        "recommender": lambda: Recommender.from_checkpoint(file, trained.data_path).recommend(
            [["i1", "i2"]], 3
        ),
        "retriever": lambda: load_retriever(model.retriever, "LRURec", of_retriever),
        "resume": lambda: checkpoints.resume_checkpoint(trainer, of_retriever),
    }
    before, not_refused = tree(place), []
    for name, way in ways.items():
        # the last two are RecBole's, of weights or an optimizer that is not there
        with suppress(ValueError, FileNotFoundError, RuntimeError, KeyError):
            way()
            not_refused.append(name)
        assert not place.canary.exists(), name
        assert tree(place) == before, name
    return not_refused


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls(name, protocol, trained, place):
    """Beside whole weights and settings, so that nothing else is wrong with the file."""
    harm = pickles(place)[name]

    def write(checkpoint: dict[str, Any], file: Path) -> None:
        checkpoint["optimizer"] = harm
        checkpoint["other_parameter"]["extra"] = harm
        checkpoint["config"]["extra"] = harm
        torch.save(checkpoint, file, pickle_protocol=protocol)

    assert set(opened(trained, place, write)) >= {"load", "data and model", "recommender"}


def test_every_attack_is_tried(place):
    assert set(pickles(place)) == set(PICKLES)
    assert set(settings(place)) == set(SETTINGS)


def test_the_payload_is_a_real_one(place):
    file = place.root / "hostile.pth"
    torch.save({"config": pickles(place)["os.system"]}, file)
    torch.load(file, weights_only=False)
    assert place.canary.exists()


@pytest.mark.parametrize("part", ["config", "state_dict", "a weight", "whole"])
def test_a_call_in_the_place_of_a_part(part, trained, place):
    harm = Calls(os.system, place.command)

    def write(checkpoint: dict[str, Any], file: Path) -> None:
        if part == "a weight":
            checkpoint["state_dict"][next(iter(checkpoint["state_dict"]))] = harm
        else:
            checkpoint[part] = harm
        torch.save(harm if part == "whole" else checkpoint, file, pickle_protocol=4)

    assert set(opened(trained, place, write)) <= {"load"}


def test_a_pickle_that_is_no_archive(trained, place):
    harm = pickle.dumps(Calls(os.system, place.command))
    assert opened(trained, place, lambda _, file: file.write_bytes(harm)) == []


def test_a_program_of_torchscript(trained, place):
    scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    assert opened(trained, place, lambda _, file: torch.jit.save(scripted, file)) == []


TARGETS = {
    "unpickler": inert._InertUnpickler,
    "stand-in": inert._StandIn,
    "tensors": inert._Data,
    "Config": Config,
    "settings": values.settings_of_file,
    "recommender": Recommender,
    "tensor": torch.Tensor,
}


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_state_that_is_set_on_a_class(name, dotted, trained, place):
    """Opcodes that give a class or function attributes, as a former unpickler let them."""
    target = TARGETS[name]
    module, own = target.__module__, target.__qualname__
    if dotted:  # by way of another module, as protocol 4 may
        module, own = "recbole_llamarec.integration.inert", f"sys.modules.{own}"
    name_of = b"".join(b"X" + len(t).to_bytes(4, "little") + t.encode() for t in (module, own))
    attributes = pickle.dumps({"find_class": 1, "__code__": 2, "__init__": 3}, 2)[2:-1]
    named = name_of + b"\x93"  # STACK_GLOBAL
    harm = b"\x80\x04}X\x01\0\0\0x" + named + b"N" + attributes + b"\x86bs."  # BUILD

    def write(_: Any, file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("hostile/data.pkl", harm)
            archive.writestr("hostile/version", "3\n")

    before = dict(vars(target))
    assert opened(trained, place, write) == []
    assert dict(vars(target)) == before


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_data(name, pickled, trained, place):
    """In a file of this package's, and in one that pickles RecBole's ``Config``."""
    harm = settings(place)[name]

    def write(checkpoint: dict[str, Any], file: Path) -> None:
        checkpoint["config"] |= harm
        if pickled:
            config = Config.__new__(Config)
            config.__dict__["final_config_dict"] = checkpoint["config"]
            checkpoint["config"] = config
        torch.save(checkpoint, file, pickle_protocol=4 if pickled else 2)

    opened(trained, place, write)


@pytest.mark.parametrize(
    "names",
    [
        *({"dataset": n} for n in ("../x", "/x", "a/b", "a\\b", "..", ".x", "a\n", "", 1, ["a"])),
        *({"model": name} for name in ("../x", "os.path", "", None, "x y")),
        *({"benchmark_filename": name} for name in ("../x", ["a", "../x"])),
        {"additional_feat_suffix": ["a/../b"]},
        {"teacher": "f()"},
        {"retriever_config": {"model": "a.b"}},
        {"retriever_config": "text"},
    ],
    ids=str,
)
def test_a_name_that_is_a_path_is_refused(names):
    with pytest.raises(ValueError, match="is no plain name|has no settings"):
        values.settings_of_file({"model": "LRURec", "dataset": "tiny"} | names)


def test_pickles_in_the_folder_of_checkpoints_are_not_read(trained, place):
    """RecBole would, whatever the file says: they may have come with it."""
    saved = place.root / "work" / "saved"
    saved.mkdir()
    for name in ("tiny-LlamaRecDataset.pth", "tiny-for-LlamaRec-dataloader.pth"):
        (saved / name).write_bytes(pickle.dumps(Calls(os.system, place.command)))
    assert "recommender" in opened(trained, place, torch.save)
    with suppress(AttributeError):
        create_dataset(Config(config_dict={**trained.settings, "checkpoint_dir": str(saved)}))
    assert place.canary.exists()  # a run of one's own reads one's own


def test_an_adapter_that_names_a_module(trained, place, monkeypatch):
    """PEFT imports ``megatron_core`` where there is a ``megatron_config``."""
    script_in(place)
    monkeypatch.syspath_prepend(place.outside)

    def write(checkpoint: dict[str, Any], file: Path) -> None:
        for state in checkpoint["other_parameter"].get("scorers", {}).values():
            if "lora" in state:
                state["lora"] |= {"megatron_config": {"x": 1}, "megatron_core": "script"}
        torch.save(checkpoint, file)

    assert "recommender" in opened(trained, place, write)


def test_an_honest_file_opens_in_every_way(trained, place):
    assert len(opened(trained, place, torch.save)) == 5


def test_values_of_a_file_keep_their_kinds(trained, place):
    config, *_ = load_data_and_model(str(trained.checkpoint), trained.data_path)
    for key in ("retriever_config", "topk", "metrics", "load_col", "learning_rate", "seed"):
        assert config[key] == load_checkpoint(trained.checkpoint)["config"][key]
    assert config["eval_type"] is Config(config_dict=trained.settings)["eval_type"]
    assert config["checkpoint_dir"] == "saved"
    assert isinstance(config["retriever_config"], Mapping)
