"""The folder of results in shards: resumed by shard, and never another run's."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recbole_llamarec.recommender import Recommendation
from recbole_llamarec.results_folder import ResultsFolder


class Echo:
    """Recommends a history's first item, and counts the histories."""

    n_ranked = 0

    def ids_of(self, tokens):
        if "nix" in tokens:
            raise ValueError("the data set has no item 'nix'")
        return [0] * len(tokens)

    def recommend(self, histories, k=10):
        if not 1 <= k < 50:
            raise ValueError(f"k is {k}")
        self.n_ranked += len(histories)
        return [[Recommendation(own[0], "", 1, 0.5, None, 1)] for own in histories]


@pytest.fixture
def shards(tmp_path):
    """Two shards of lines and one of Parquet, a checkpoint, and where results go."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('["a1"]\n["a2", "a1"]\n')
    (folder / "b.jsonl").write_text('["b1"]\n')
    pq.write_table(pa.table({"history": [["c1"], ["c2"], ["c3"]]}), folder / "c.parquet")
    (tmp_path / "run.pth").write_text("weights")
    return folder


def folder_of(shards, k=3):
    return ResultsFolder(shards.parent / "out", shards.parent / "run.pth", shards, k)


def finished(shards, names=("a.jsonl", "b.jsonl", "c.parquet")):
    folder, echo = folder_of(shards), Echo()
    folder.begin()
    for name in names:
        folder.rank(name, echo)
    return folder, echo


def test_each_shard_has_results_of_its_name_and_order(shards):
    folder, echo = finished(shards)
    assert echo.n_ranked == 6 and folder.pending == []
    lines = folder.results("a.jsonl").read_text().splitlines()
    assert [json.loads(line)[0]["item"] for line in lines] == ["a1", "a2"]
    rows = pq.read_table(folder.results("c.parquet"))["recommendations"].to_pylist()
    assert [row[0]["item"] for row in rows] == ["c1", "c2", "c3"]
    assert sorted(file.name for file in (shards.parent / "out").iterdir()) == [
        "a.jsonl", "b.jsonl", "c.parquet", "run.json",
    ]  # fmt: skip


def test_an_interrupted_run_goes_on_with_the_shards_that_are_left(shards):
    finished(shards, names=["b.jsonl"])
    part = shards.parent / "out" / "a.jsonl.0123.part"  # of a killed worker
    part.write_text("half a li")
    again = folder_of(shards)
    assert again.pending == ["a.jsonl", "c.parquet"]
    again.begin()
    assert not part.exists() and again.pending == ["a.jsonl", "c.parquet"]


def test_a_failed_shard_leaves_nothing_under_its_name(shards):
    class Fails(Echo):
        def recommend(self, histories, k=10):
            raise ValueError("no")

    folder, _ = finished(shards, names=[])
    with pytest.raises(ValueError, match="no"):
        folder.rank("a.jsonl", Fails())
    assert folder.pending == ["a.jsonl", "b.jsonl", "c.parquet"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "run.pth").write_text("other"), r"another run \(checkpoint_sha256"),
        (lambda root: (root / "in" / "b.jsonl").write_text("[1]\n"), r"run \(shards_sha256 differ"),
        (lambda root: (root / "in" / "d.jsonl").write_text("[1]\n"), r"run \(shards_sha256 differ"),
        (lambda root: (root / "out" / "run.json").write_text("{"), "run.json cannot be read"),
        (lambda root: (root / "out" / "run.json").write_text("{}"), "does not say of what it is"),
        (lambda root: (root / "out" / "run.json").unlink(), "it holds 'a.jsonl' and no run.json"),
        (lambda root: (root / "out" / "b.jsonl").write_text(""), "'b.jsonl' in it has not 1 res"),
    ],
)  # fmt: skip
def test_results_of_another_run_are_not_touched(change, words, shards):
    finished(shards)
    change(shards.parent)
    before = {file: file.read_bytes() for file in (shards.parent / "out").iterdir()}
    with pytest.raises(ValueError, match=f"--out: .* is not touched: .*{words}"):
        folder_of(shards)
    assert before == {file: file.read_bytes() for file in (shards.parent / "out").iterdir()}


def test_another_k_is_another_run(shards):
    finished(shards)
    with pytest.raises(ValueError, match=r"another run \(k differ"):
        folder_of(shards, k=4)


def test_folders_that_cannot_be_used(shards):
    root = shards.parent
    with pytest.raises(FileNotFoundError, match="--checkpoint: .*none.pth' is no file"):
        ResultsFolder(root / "out", root / "none.pth", shards, 3)
    with pytest.raises(FileNotFoundError, match="--out: the folder .* does not exist; make it"):
        ResultsFolder(root / "no" / "out", root / "run.pth", shards, 3)
    with pytest.raises(ValueError, match="is the folder of the histories"):
        ResultsFolder(shards, root / "run.pth", shards, 3)
    with pytest.raises(ValueError, match="it is no folder"):
        ResultsFolder(root / "run.pth", root / "run.pth", shards, 3)


def test_a_bad_line_is_named_before_anything_is_ranked(shards):
    (shards / "b.jsonl").write_text('["b1"]\n["nix"]\n')
    echo = Echo()
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: the data set has no item 'nix'"):
        folder_of(shards).check(echo)
    with pytest.raises(ValueError, match="k is 50"):
        folder_of(shards, k=50).check(echo)
    assert echo.n_ranked == 0 and not (shards.parent / "out").exists()


def test_a_machine_with_other_files_is_told_apart(shards):
    folder, _ = finished(shards, names=[])
    folder.require_here()
    (shards.parent / "run.pth").write_text("another")
    with pytest.raises(ValueError, match="run.pth' is another file here"):
        folder.require_here()
    (shards.parent / "out" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="run.json' is of another run here"):
        folder.require_here()
