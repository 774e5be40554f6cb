"""Shards of histories and of results, in both forms."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pyarrow.parquet as parquet
import pytest
from ray_stand_in import StandIn
from test_histories import write_parquet

from recbole_llamarec import shards
from recbole_llamarec.shards import rows_in, shards_of, write_results


def test_the_shards_of_a_folder_stand_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.jsonl").write_text('["i1"]\n["i2"]')
    write_parquet(tmp_path / "a.parquet", [["i1"]] * 3)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".b.jsonl.crc").touch()
    found = shards_of(tmp_path)
    rows = [(name, shard.rows) for name, shard in found.items()]
    assert rows == [("a.parquet", 3), ("b.jsonl", 2)]
    assert found["b.jsonl"].file == tmp_path / "b.jsonl"
    assert shards_of(tmp_path / "b.jsonl") == {"b.jsonl": found["b.jsonl"]}


@pytest.mark.parametrize("name", ["a.json", "notes", "folder.jsonl"])
def test_what_is_no_shard_is_named(name, tmp_path):
    with pytest.raises(ValueError, match="holds no shard"):
        shards_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="--histories: .* does not exist"):
        shards_of(tmp_path / name)
    (tmp_path / "b.jsonl").touch()
    (tmp_path / name).mkdir() if name.startswith("folder") else (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"--histories: .*{name}' is no file that ends in .jsonl"):
        shards_of(tmp_path)


def test_both_forms_hold_the_same_results(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP", 2)  # and so several groups of rows
    results = StandIn().recommend([["i1"], ["i2"], ["i3"]], 2)
    expected = [[asdict(item) for item in result] for result in results]
    for form in (".jsonl", ".parquet"):
        write_results(tmp_path / "a.part", form, iter(results))
        file = (tmp_path / "a.part").rename(tmp_path / f"a{form}")
        assert rows_in(file) == 3
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table["recommendations"].to_pylist() == expected
    assert table.schema.field("recommendations").type.value_type.field("score").type == "double"
    write_results(tmp_path / "none.parquet", ".parquet", [])
    assert rows_in(tmp_path / "none.parquet") == 0


def test_parquet_needs_its_reader(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", [["i1"]])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[parquet\]"'):
        shards_of(tmp_path)
