"""The files that an interrupted run goes on from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from given import with_file
from helpers import environment
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_llamarec.files import save_tensors
from recbole_llamarec.tuning.score_log import ScoreLog
from recbole_llamarec.tuning.state import RunState, differences, read_state, result_settings

SETTINGS = {"learning_rate": "0.1", "seed": "1"}


def claim(folder: Path, name: str = "LlamaRec-new", resume: Path | None = None, **changed: str):
    return RunState.claim(folder / name, SETTINGS | changed, 10.0, resume)


def interrupted(folder: Path) -> Path:
    """A run that was killed while it was tuned: its state lies there, its lock is free."""
    state = claim(folder, "LlamaRec-old")
    state.put("tuning", {"step": 3, "adapter": {"w": torch.arange(4.0)}})
    state.close()
    return state.stem


def test_a_run_of_the_same_settings_is_taken_up_with_its_tensors(tmp_path):
    stem = interrupted(tmp_path)
    state = claim(tmp_path)
    assert state.stem == stem
    assert state.phases["tuning"]["step"] == 3
    assert torch.equal(state.phases["tuning"]["adapter"]["w"], torch.arange(4.0))


def test_a_run_of_other_settings_is_left_alone(tmp_path, caplog):
    stem = interrupted(tmp_path)
    with caplog.at_level("INFO"):
        state = claim(tmp_path, learning_rate="0.2")
    assert state.stem == tmp_path / "LlamaRec-new" and not state.phases
    assert "learning_rate was 0.1 and is 0.2" in caplog.text
    assert Path(f"{stem}.resume.pt").is_file()


@pytest.mark.parametrize("ending", [".pth", ".resume.pt"])
def test_a_named_run_is_taken_up_by_its_checkpoint_or_state(tmp_path, ending):
    stem = interrupted(tmp_path)
    assert claim(tmp_path, resume=Path(f"{stem}{ending}")).stem == stem


def test_a_named_run_of_other_settings_is_refused_with_each_of_them(tmp_path):
    stem = interrupted(tmp_path)
    with pytest.raises(ValueError, match="resume: .*learning_rate was 0.1 and is 0.2; seed was 1"):
        claim(tmp_path, resume=Path(f"{stem}.pth"), learning_rate="0.2", seed="2")


def test_a_named_run_without_state_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="resume: .*was completed, or was not interrupted"):
        claim(tmp_path, resume=tmp_path / "LlamaRec-gone.pth")


def test_a_run_that_another_process_works_on_is_not_taken_up(tmp_path):
    stem = interrupted(tmp_path)
    code = f"""
import sys
from filelock import FileLock
lock = FileLock({str(stem) + ".lock"!r})
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert claim(tmp_path).stem == tmp_path / "LlamaRec-new"
        with pytest.raises(ValueError, match="another process works on"):
            claim(tmp_path, resume=Path(f"{stem}.pth"))
    finally:
        process.communicate("")
    assert claim(tmp_path, "LlamaRec-third").stem == stem


def test_the_latest_of_several_interrupted_runs_is_taken_up(tmp_path):
    for name in ("LlamaRec-1", "LlamaRec-2"):
        state = RunState(tmp_path / name, SETTINGS, 10.0)
        state.put("tuning", {"name": name})
        state.close()
    assert claim(tmp_path).phases["tuning"]["name"] == "LlamaRec-2"


def test_a_state_that_another_process_removes_meanwhile_hinders_nobody(tmp_path):
    stem = interrupted(tmp_path)
    (tmp_path / "LlamaRec-gone.resume.pt").symlink_to(tmp_path / "nowhere")  # listed, not there
    assert claim(tmp_path).stem == stem


def test_a_damaged_state_is_left_alone_and_a_new_run_begins(tmp_path, caplog):
    stem = interrupted(tmp_path)
    file = Path(f"{stem}.resume.pt")
    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level("WARNING"):
        assert not claim(tmp_path).phases
    assert f"The state {str(file)!r} cannot be read" in caplog.text
    assert "Restore a copy, or delete it" in caplog.text


def test_a_state_with_a_flipped_bit_is_refused(tmp_path):
    stem = interrupted(tmp_path)
    file = Path(f"{stem}.resume.pt")
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(3.0).tobytes())] ^= 1  # of the weights
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read: .* the checksum differs"):
        claim(tmp_path, resume=file)


def test_a_state_that_names_code_is_not_run(tmp_path):
    file = tmp_path / "LlamaRec-old.resume.pt"
    torch.save({"settings": SETTINGS, "phases": {"tuning": Path}}, file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(file)


def test_a_kill_while_a_state_is_written_leaves_the_old_one(tmp_path):
    stem = interrupted(tmp_path)
    part = Path(f"{stem}.resume.pt.part")
    part.write_bytes(b"half")
    state = claim(tmp_path)
    assert state.phases["tuning"]["step"] == 3 and not part.exists()


def test_what_a_run_killed_at_its_start_left_is_removed_by_the_next(tmp_path):
    for name in ("LlamaRec-dead.lock", "LlamaRec-dead.resume.pt.part", "LlamaRec-dead.pth"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".LlamaRec-dead.adapter.part").mkdir()
    claim(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"LlamaRec-new.lock", "LlamaRec-dead.pth"}


def test_what_an_interrupted_run_left_half_written_is_removed_by_a_run_of_other_settings(tmp_path):
    stem = interrupted(tmp_path)
    Path(f"{stem}.pth.part").write_bytes(b"half")
    for name, content in ((".adapter.part", "half"), (".adapter.replaced", "whole")):
        folder = tmp_path / f".{stem.name}{name}"
        folder.mkdir()
        (folder / "weights").write_text(content)
    claim(tmp_path, learning_rate="0.2")
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))
    assert Path(f"{stem}.adapter", "weights").read_text() == "whole"
    assert claim(tmp_path).stem == stem  # its state has stayed


def test_a_completed_run_leaves_no_state(tmp_path):
    state = claim(tmp_path)
    state.put("tuning", {})
    ScoreLog(state.stem, 0, 1, 10.0).begin("test").write()
    (tmp_path / "LlamaRec-new.pth").write_bytes(b"")
    state.remove()
    assert [file.name for file in tmp_path.iterdir()] == ["LlamaRec-new.pth"]


def test_a_state_is_due_after_its_minutes(tmp_path):
    state = RunState(tmp_path / "LlamaRec-1", SETTINGS, every_minutes=0)
    assert state.is_due
    state.close()
    state = RunState(tmp_path / "LlamaRec-2", SETTINGS, every_minutes=10)
    assert not state.is_due


@pytest.mark.parametrize("key", ["retriever_file", "retriever_checkpoint"])
def test_a_run_does_not_go_on_with_other_contents_of_its_inputs(tiny_run, tmp_path, key):
    name = f"a{'.tsv' if key == 'retriever_file' else '.pth'}"

    def settings_of(content: str) -> dict[str, str]:
        (tmp_path / name).write_text(content)
        given = {key: name} if key == "retriever_checkpoint" else with_file({}, name)
        return result_settings(Config(config_dict=tiny_run | given))

    def begun(content: str, resume: Path | None = None) -> RunState:
        return RunState.claim(tmp_path / "LlamaRec-1", settings_of(content), 10.0, resume)

    state = begun("1 2 0.5")
    state.put("tuning", {})
    state.close()
    with pytest.raises(ValueError, match=f"resume: .* other settings: content of {key} was"):
        begun("1 2 0.6", resume=state.stem)
    anew = begun("1 2 0.6")
    assert anew.stem != state.stem
    anew.close()
    assert begun("1 2 0.5").stem == state.stem


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("tiny.item", "i7\tThe ", "i7\tA "),
        ("tiny.inter", "40\ti50\t881250011", "40\ti1\t881250011"),  # the last user's last item
    ],
)
def test_a_run_does_not_go_on_with_other_titles_or_test_rows(tiny_run, name, before, after):
    def data() -> str:
        config = Config(config_dict=tiny_run)
        train, valid, _ = data_preparation(config, create_dataset(config))
        return result_settings(config, train, valid)["data"]

    first, file = data(), Path(tiny_run["data_path"]) / "tiny" / name
    assert data() == first
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    assert data() != first


def test_the_content_of_each_of_two_tables_counts(tiny_run, tmp_path):
    files = {part: str(tmp_path / f"{part}.tsv") for part in ("valid", "test")}
    for file in files.values():
        Path(file).touch()
    config = Config(config_dict=with_file(tiny_run, files))
    digests = set()
    for valid, test in (("a", "b"), ("b", "a"), ("a", "a"), ("ab", "")):
        Path(files["valid"]).write_text(valid)
        Path(files["test"]).write_text(test)
        digests.add(result_settings(config)["content of retriever_file"])
    assert len(digests) == 4


def test_differences_name_keys_of_either_side():
    assert differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == [
        "a was 1 and is not set",
        "b was 2 and is 3",
        "c was not set and is 4",
    ]


def test_scored_batches_come_back_in_order_and_then_nothing(tmp_path):
    log = ScoreLog(tmp_path / "run", 0, 1, every_minutes=0).begin("test")
    assert log.next() is None
    for value in (1.0, 2.0):
        log.add(torch.full((2, 3), value))
    again = ScoreLog(tmp_path / "run", 0, 1, every_minutes=10).begin("test")
    assert [float(again.next()[0, 0]) for _ in range(2)] == [1.0, 2.0]
    assert again.next() is None
    again.add(torch.full((2, 3), 3.0))
    assert again.next() is None


@pytest.mark.parametrize("name, world_size", [("fusion", 1), ("test", 2)])
def test_scored_batches_of_another_pass_or_number_of_processes_are_not_taken(
    tmp_path, name, world_size
):
    ScoreLog(tmp_path / "run", 0, 1, every_minutes=0).begin("test").add(torch.zeros(1, 2))
    assert ScoreLog(tmp_path / "run", 0, world_size, every_minutes=0).begin(name).next() is None


def test_a_damaged_log_of_scores_is_scored_again(tmp_path, caplog):
    file = tmp_path / "run.scores-0.pt"
    file.write_bytes(b"no archive")
    assert ScoreLog(tmp_path / "run", 0, 1, every_minutes=10).begin("test").next() is None
    assert "scored again" in caplog.text


def test_writing_replaces_a_file_in_one_step(tmp_path):
    file = tmp_path / "a" / "state.pt"
    save_tensors({"x": torch.ones(2)}, file)
    save_tensors({"x": torch.zeros(2)}, file)
    assert torch.equal(torch.load(file, weights_only=True)["x"], torch.zeros(2))
    assert [own.name for own in file.parent.iterdir()] == ["state.pt"]


def test_locks_of_the_same_process_are_released_with_the_state(tmp_path):
    state = claim(tmp_path)
    state.close()
    with FileLock(f"{state.stem}.lock", timeout=0):
        pass
