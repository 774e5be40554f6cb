"""Histories of files: lines of JSON and rows of Parquet, and what is none."""

from __future__ import annotations

import sys

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from recbole_llamarec.histories import histories_of, read_history


class Items:
    """A catalogue of i0 to i99, and of the numbers below 100."""

    def ids_of(self, tokens):
        if unknown := [t for t in tokens if not t.removeprefix("i").isdecimal() or len(t) > 3]:
            raise ValueError(f"no item {unknown[0]!r}")
        return list(range(len(tokens)))


def write_parquet(file, rows, kind=None, column="history"):
    write_table(pa.table({column: pa.array(rows, kind)}), file)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no JSON"),
        ("[]", "no list of item tokens"),
        ('"i1"', "no list of item tokens"),
        ("", "no JSON"),
        (b'["i1", "i\xff"]', "no JSON in UTF-8"),
        (b'\xef\xbb\xbf["i1"]', "no JSON in UTF-8.*BOM"),
        ('["i1"]'.encode("utf-16"), "no JSON in UTF-8"),
        ('["i1", null]', "null is no item token; write it in quotes"),
        ('["i1", true]', "true is no item token"),
        ('["i1", NaN]', "NaN is no item token"),
        ('["i1", 1.5]', "1.5 is no item token"),
        ('["i1", ["i2"]]', "is no item token"),
        ("[" * 100_000, "no JSON"),
        (f"[{'9' * 5000}]", "no JSON"),
    ],
)
def test_a_line_that_is_no_history_is_named(line, words, tmp_path):
    with pytest.raises(ValueError, match=f"in.jsonl, line 7: .*{words}"):
        read_history(line, 7, tmp_path / "in.jsonl")


def test_lines_and_rows_are_the_same_histories(tmp_path):
    lines, rows, numbers = (tmp_path / name for name in ("a.jsonl", "a.parquet", "b.parquet"))
    lines.write_text('["i1", 2]\n[3]\n')
    write_parquet(rows, [["i1", "2"], ["3"]])
    write_parquet(numbers, [[1, 2]] * 200)  # more than are read at a time
    assert list(histories_of(lines, Items())) == [["i1", "2"], ["3"]]
    assert list(histories_of(rows, Items())) == [["i1", "2"], ["3"]]
    assert list(histories_of(numbers, Items())) == [["1", "2"]] * 200


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([["i1"], ["nix"]], None, "row 2: no item 'nix'"),
        ([["i1"], []], None, "row 2: no list of item tokens"),
        ([["i1"], None], None, "row 2: no list of item tokens"),
        ([["i1"], ["i1", None]], None, "row 2: null is no item token"),
        ([[1.0], [2.5]], None, "row 1: 1.0 is no item token"),
        ([["i1"] * 9, [b"i1"]], pa.list_(pa.binary()), "row 1: .* is no item token"),
        (["i1"], None, "row 1: no list of item tokens.*It is"),
    ],
)
def test_a_row_that_is_no_history_is_named(rows, kind, words, tmp_path):
    write_parquet(tmp_path / "a.parquet", rows, kind)
    with pytest.raises(ValueError, match=f"a.parquet, {words}"):
        list(histories_of(tmp_path / "a.parquet", Items()))


def test_what_is_no_parquet_is_named(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    with pytest.raises(FileNotFoundError):
        list(histories_of(file, Items()))
    file.write_text('["i1"]\n')
    with pytest.raises(ValueError, match="a.parquet: it cannot be read as Parquet"):
        list(histories_of(file, Items()))
    write_parquet(file, [["i1"]], column="items")
    with pytest.raises(ValueError, match="columns items; it must have 'history'"):
        list(histories_of(file, Items()))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[parquet\]"'):
        list(histories_of(file, Items()))
