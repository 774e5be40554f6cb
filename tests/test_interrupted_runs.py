"""An interrupted run goes on with the same command and ends as if nothing had happened."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import checkpoint_of, tiny_settings
from recbole.quick_start import run_recbole
from safetensors.torch import load_file

from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.tuning.score_log import ScoreLog
from recbole_llamarec.tuning.state import RunState


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@dataclass(frozen=True)
class Outcome:
    """What a run that came to its end has left."""

    result: dict
    users: bytes
    files: set[str]
    adapter: dict


def settings_of(root: Path, llama: Path) -> dict:
    """A small run with dropout, both kinds of validation, and a state at every step."""
    return tiny_settings(root, llama) | {
        "data_path": str(root / "data"),
        "rerank_fusion": "auto",
        "evidence_items": 2,
        "epochs": 2,
        "lora_dropout": 0.2,
        "train_eval_steps": 3,
        "train_eval_rows": 12,
        "llm_batch_tokens": 512,
        "save_every_minutes": 1e-9,
    }


def run(settings: dict) -> Outcome:
    result = run_recbole(config_dict=dict(settings))
    saved = Path(settings["checkpoint_dir"])
    checkpoint = checkpoint_of(saved)
    scorers = load_checkpoint(checkpoint)["other_parameter"]["scorers"]
    return Outcome(
        {name: dict(result[name]) for name in ("best_valid_result", "test_result")},
        checkpoint.with_suffix(".users.csv").read_bytes(),
        {file.name.split(".", 1)[1] for file in saved.iterdir()},
        {name: tensor.tolist() for name, tensor in scorers["verbalizer"]["adapter"].items()},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_llama):
    """The run as it should end, and how often it wrote a state and scored a batch."""
    root = tmp_path_factory.mktemp("uninterrupted")
    counts = {"put": 0, "add": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        for owner, name in ((RunState, "put"), (ScoreLog, "add")):
            patch.setattr(owner, name, counting(getattr(owner, name), counts, name))
        outcome = run(settings_of(root, tiny_llama))
    return outcome, counts


def counting(function, counts: dict[str, int], name: str, stop: int | None = None):
    """Count the calls of a method, and raise behind the one numbered ``stop``."""

    def counted(self, *arguments):
        function(self, *arguments)
        counts[name] += 1
        if counts[name] == stop:
            raise Interrupted(f"behind {name} number {stop}")

    return counted


@pytest.mark.parametrize("method", ["put", "add"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_run_interrupted_anywhere_ends_with_the_same_bytes(
    uninterrupted, tmp_path, tiny_llama, monkeypatch, method, share
):
    expected, counts = uninterrupted
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    settings = settings_of(tmp_path, tiny_llama)
    stop = 1 + round(share * (counts[method] - 1))
    owner = RunState if method == "put" else ScoreLog
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, counting(getattr(owner, method), {method: 0}, method, stop))
        with pytest.raises(Interrupted):
            run(settings)
    assert list(Path(settings["checkpoint_dir"]).glob("*.resume.pt"))
    outcome = run(settings)
    assert outcome.result == expected.result
    assert outcome.users == expected.users
    assert outcome.adapter == expected.adapter
    assert outcome.files == expected.files


@pytest.mark.slow
def test_a_run_interrupted_again_and_again_ends_with_the_same_bytes(
    uninterrupted, tmp_path, tiny_llama, monkeypatch
):
    expected, _ = uninterrupted
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    settings = settings_of(tmp_path, tiny_llama)
    n_interruptions = 0
    for _ in range(30):
        with monkeypatch.context() as patch:
            patch.setattr(RunState, "put", counting(RunState.put, {"put": 0}, "put", 4))
            patch.setattr(ScoreLog, "add", counting(ScoreLog.add, {"add": 0}, "add", 3))
            try:
                outcome = run(settings)
                break
            except Interrupted:
                n_interruptions += 1
    assert n_interruptions > 3
    assert (outcome.result, outcome.users) == (expected.result, expected.users)


def test_a_named_run_with_another_setting_is_refused_with_its_name(
    tmp_path, tiny_llama, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    settings = settings_of(tmp_path, tiny_llama)
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "put", counting(RunState.put, {"put": 0}, "put", 5))
        with pytest.raises(Interrupted):
            run(settings)
    (state,) = Path(settings["checkpoint_dir"]).glob("*.resume.pt")
    named = settings | {"resume": str(state).replace(".resume.pt", ".pth")}
    with pytest.raises(ValueError, match="resume: .*learning_rate was 0.01 and is 0.02"):
        run(named | {"learning_rate": 0.02})
    assert run(named).result["test_result"]["recall@10"] > 0


def test_a_half_tuned_run_is_not_taken_up_once_an_adapter_is_found(
    trained, tmp_path, tiny_llama, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    monkeypatch.setenv("RECBOLE_LLAMAREC_CACHE", str(tmp_path / "cache"))
    settings = settings_of(tmp_path, tiny_llama)
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "put", counting(RunState.put, {"put": 0}, "put", 8))
        with pytest.raises(Interrupted):
            run(settings)
    kept = trained.checkpoint.with_suffix(".adapter")
    shutil.copytree(kept, tmp_path / "cache" / "adapters" / "tiny")
    found = load_file(kept / "adapter_model.safetensors")
    adapter = run(settings).adapter
    assert adapter == {name: weight.tolist() for name, weight in found.items()}
