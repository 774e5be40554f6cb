"""Shards: which files are some, and results as lines and as rows of Parquet."""

from __future__ import annotations

import json
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest

from recbole_llamarec.recommender import Recommendation
from recbole_llamarec.shards import rows_in, shards_of, write_results

RESULTS = [
    [
        Recommendation("i1", "The one", 1, 0.5, 0.25, 2),
        Recommendation("i2", "Två", 2, -1e-3, 0.125, 1),
    ],
    [Recommendation("i3", "The third", 1, None, None, 7)],
    [],
]


def test_both_forms_hold_the_same_results(tmp_path):
    for form in (".jsonl", ".parquet"):
        write_results(tmp_path / f"out{form}", form, iter(RESULTS))
        assert rows_in(tmp_path / f"out{form}") == 3
    plain = [[asdict(item) for item in result] for result in RESULTS]
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == plain
    assert pq.read_table(tmp_path / "out.parquet")["recommendations"].to_pylist() == plain


def test_more_results_than_are_held_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.shards.GROUP", 2)
    write_results(tmp_path / "out.parquet", ".parquet", iter(RESULTS * 3))
    assert rows_in(tmp_path / "out.parquet") == 9


def test_the_shards_of_a_folder(tmp_path):
    (tmp_path / "b.jsonl").write_text('["i1"]\n["i2"]\n')
    (tmp_path / "a.jsonl").write_text('["i1"]')
    for left in ("_SUCCESS", ".crc"):
        (tmp_path / left).write_text("")
    shards = shards_of(tmp_path)
    assert [(name, shard.rows) for name, shard in shards.items()] == [
        ("a.jsonl", 1),
        ("b.jsonl", 2),
    ]
    assert shards["a.jsonl"].sha256 != shards["b.jsonl"].sha256
    assert list(shards_of(tmp_path / "b.jsonl")) == ["b.jsonl"]


def test_what_is_no_shard_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none' does not exist; check the path"):
        shards_of(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no shard"):
        shards_of(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes.txt' is no file that ends in .jsonl or .parquet"):
        shards_of(tmp_path)
    (tmp_path / "notes.txt").rename(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: it cannot be read as Parquet"):
        shards_of(tmp_path)
