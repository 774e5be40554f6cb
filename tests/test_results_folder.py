"""The folder of results: finished shards stay, and those of another run are not touched."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from limits import files_of_at_most
from ray_stand_in import StandIn
from test_histories import write_parquet

from recbole_llamarec.results_folder import ResultsFolder


@dataclass(frozen=True)
class Batch:
    """The files of one command ``recommend --engine ray``."""

    checkpoint: Path
    histories: Path
    out: Path

    def folder(self, k: int = 2) -> ResultsFolder:
        return ResultsFolder(self.out, self.checkpoint, self.histories, k)

    def run(self, recommender=None, k: int = 2) -> dict[str, bytes]:
        folder = self.folder(k)
        folder.check(recommender or StandIn())
        folder.begin()
        for name in folder.pending:
            folder.rank(name, recommender or StandIn())
        return self.bytes()

    def bytes(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.out.iterdir()}


@pytest.fixture
def batch(tmp_path) -> Batch:
    histories = tmp_path / "histories"
    histories.mkdir()
    (histories / "a.jsonl").write_text('["i1", "i2"]\n["i3"]\n')
    (histories / "b[1].jsonl").write_text('["i4"]\n')
    write_parquet(histories / "c.parquet", [["i5"], ["i6"], ["i7"]])
    (tmp_path / "model.pth").write_bytes(b"weights")
    return Batch(tmp_path / "model.pth", histories, tmp_path / "out")


def test_a_shard_of_results_for_each_shard_of_histories(batch):
    assert batch.folder().pending == ["a.jsonl", "b[1].jsonl", "c.parquet"]
    assert not batch.out.exists()  # until it begins
    assert set(batch.run()) == {"a.jsonl", "b[1].jsonl", "c.parquet", "run.json"}
    assert batch.folder().pending == []


def test_a_run_goes_on_with_the_shards_that_are_not_finished(batch):
    whole = batch.run()
    finished = batch.out / "a.jsonl"
    time = finished.stat().st_mtime_ns
    (batch.out / "b[1].jsonl").unlink()
    (batch.out / "b[1].jsonl.0a.part").write_text("half")  # of a worker that was killed
    (batch.out / "notes.part").write_text("mine")
    assert batch.folder().pending == ["b[1].jsonl"]
    assert batch.run() == whole | {"notes.part": b"mine"}
    assert finished.stat().st_mtime_ns == time


def test_a_run_that_was_killed_before_it_said_what_it_is_begins_again(batch):
    batch.out.mkdir()
    (batch.out / "run.json.0a.part").touch()
    assert "run.json.0a.part" not in batch.run()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes", "mine", "it holds 'notes' and no run.json"),
        ("a.jsonl", "[]", "it holds 'a.jsonl' and no run.json"),
        ("run.json", "mine", "run.json cannot be read"),
        ("run.json", "[]", "does not say of what it is"),
    ],
)
def test_a_folder_that_is_not_its_own_is_not_touched(name, content, words, batch):
    batch.out.mkdir()
    (batch.out / name).write_text(content)
    with pytest.raises(ValueError, match=f"--out: .* is not touched: .*{words}"):
        batch.run()
    assert batch.bytes() == {name: content.encode()}


def test_another_run_is_not_mixed_in(batch, tmp_path):
    whole = batch.run()
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"another run \(k differ"):
        batch.run(k=3)
    with pytest.raises(ValueError, match="checkpoint_sha256"):
        replace(batch, checkpoint=other).run()
    (batch.histories / "d.jsonl").write_text('["i9"]\n')
    with pytest.raises(ValueError, match="shards_sha256"):
        batch.run()
    (batch.histories / "d.jsonl").unlink()
    (batch.out / "a.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match="'a.jsonl' in it has not 2 results"):
        batch.run()
    assert batch.bytes() == whole | {"a.jsonl": b"mine\n"}


def test_paths_that_cannot_be_used_are_named(batch, tmp_path):
    (tmp_path / "file").touch()
    for changes, words in (
        ({"checkpoint": tmp_path / "none"}, "--checkpoint: .*none' is no file"),
        ({"out": tmp_path / "none" / "out"}, "--out: the folder .*none' does not exist"),
        ({"out": batch.histories}, "--out: .* is the folder of the histories"),
        ({"out": batch.histories, "histories": batch.histories / "a.jsonl"}, "of the histories"),
        ({"out": tmp_path / "file"}, "it is no folder"),
        ({"histories": tmp_path / "none"}, "--histories: .* does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            replace(batch, **changes).run()


def test_a_bad_line_is_named_before_anything_is_ranked(batch):
    for name, line in (("b[1].jsonl", '["nix"]\n'), ("c.parquet", None)):
        file = batch.histories / name
        before = file.read_bytes()
        file.write_text(line) if line else write_parquet(file, [["i5"], ["nix"]])
        place = "line 1" if line else "row 2"
        with pytest.raises(ValueError, match=rf"{name.split('[')[0]}.*, {place}: .*no item 'nix'"):
            batch.run()
        assert not batch.out.exists()
        file.write_bytes(before)


def test_a_full_disk_leaves_no_half_of_a_shard(batch):
    whole = batch.run()
    (batch.out / "a.jsonl").unlink()
    with files_of_at_most(20), pytest.raises(OSError, match=r"--out: .*a.jsonl' cannot be written"):
        batch.run()
    assert set(batch.bytes()) == set(whole) - {"a.jsonl"}
    assert batch.run() == whole


def test_a_worker_sees_whether_its_machine_has_the_same_files(batch, monkeypatch):
    folder = batch.folder()
    sent = pickle.loads(pickle.dumps(folder))
    with pytest.raises(FileNotFoundError, match="run.json"):
        sent.require_here()
    folder.begin()
    sent.require_here()
    with monkeypatch.context() as patch:
        patch.setattr("recbole_llamarec.results_folder.__version__", "0")
        with pytest.raises(ValueError, match="recbole_llamarec is 0 here"):
            sent.require_here()
    batch.checkpoint.write_bytes(b"other")
    with pytest.raises(ValueError, match="--checkpoint: .* is another file here"):
        sent.require_here()
    (batch.out / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="run.json' is of another run here"):
        sent.require_here()


def test_an_error_of_the_model_is_no_error_of_the_folder(batch):
    class Absent(StandIn):
        def recommend(self, histories, k=10):
            if histories:
                raise FileNotFoundError("llm_name_or_path: 'none' is not there")
            return []

    with pytest.raises(FileNotFoundError, match="^llm_name_or_path: 'none' is not there$"):
        batch.run(Absent())
