"""Reading candidates of other recommenders."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from recbole_llamarec.retrieval.candidate_files import paths_of, read_candidates

ROWS = [("u1", "i 2", 0.5), ("u1", "i1", -3.0), ("007", "i1", 1e3)]
HEAD = "user_id\titem_id\tscore\n"


def rows_in(file):
    return [row[1:] for row in read_candidates(file)]


def test_every_form_gives_the_same_rows(tmp_path):
    table = pd.DataFrame(ROWS, columns=["user_id", "item_id", "score"])
    table.assign(more=1).to_parquet(tmp_path / "a.parquet", engine="fastparquet")
    text = "score:float\tuser_id:token\trank\titem_id:token\n"
    text += "".join(f"{score}\t{user}\t9\t{item}\n" for user, item, score in ROWS)
    (tmp_path / "a.tsv").write_text("\ufeff" + text + "\n", newline="\r\n")
    assert rows_in(tmp_path / "a.tsv") == rows_in(tmp_path / "a.parquet") == ROWS
    run = "u1 Q0 i1 7 -3 other\n\n007\tQ0\ti1\t1\t1e3\tother\n"
    for name in ("a.run", "a.trec"):
        (tmp_path / name).write_text(run)
        assert rows_in(tmp_path / name) == [ROWS[1], ROWS[2]]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "", ["a.tsv, line 1", "user_id"]),
        ("a.tsv", "user_id\titem_id\n", ["a.tsv, line 1", "must name score once"]),
        ("a.tsv", HEAD + "a\tb\t1\n\na\tc\n", ["a.tsv, line 4", "2 fields", "3"]),
        ("a.tsv", HEAD + "a\tb\tnan\n", ["a.tsv, line 2", "'nan'", "finite"]),
        ("a.tsv", HEAD + "a\tb\thigh\n", ["a.tsv, line 2", "'high'"]),
        ("a.tsv", HEAD + "a\t\t1\n", ["a.tsv, line 2", "empty"]),
        ("a.tsv", HEAD + "a\tb\t1\na\tb\t2\n", ["a.tsv, line 3", "'b'", "'a'", "twice"]),
        ("a.run", "a Q0 b 1 2\n", ["a.run, line 1", "5 fields", "tag"]),
        ("a.run", "a Q0 b 1 inf t\n", ["a.run, line 1", "'inf'"]),
        ("a.parquet", "PAR1", ["a.parquet", "Parquet"]),
        ("a.csv", HEAD, ["a.csv", ".tsv, .run, .trec, .parquet"]),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        rows_in(tmp_path / name)
    assert str(error.value).startswith("retriever_file: ")
    assert [word for word in words if word not in str(error.value)] == []


def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.tsv").write_bytes(HEAD.encode() + b"a\t\xe9\t1\n")
    with pytest.raises(ValueError, match=r"a\.tsv.*UTF-8"):
        rows_in(tmp_path / "a.tsv")


def test_a_table_without_a_column_or_with_an_empty_field_is_refused(tmp_path):
    file = tmp_path / "a.parquet"
    pd.DataFrame({"user": ["a"], "item_id": ["b"], "score": [1.0]}).to_parquet(file)
    with pytest.raises(ValueError, match=r"a\.parquet' has no column user_id; it has \['user'"):
        rows_in(file)
    table = pd.DataFrame({"user_id": ["a", None], "item_id": ["b", "c"], "score": [1.0, 2.0]})
    table.to_parquet(file)
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: the user ''.*empty"):
        rows_in(file)


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1")
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'recbole-llamarec\[parquet\]'"):
        rows_in(file)


def test_one_path_is_for_both_parts(tmp_path):
    assert {str(path) for path in paths_of("a.run").values()} == {"a.run"}
    both = paths_of({"test": "t.run", "valid": "v.run"})
    assert {part: path.name for part, path in both.items()} == {"valid": "v.run", "test": "t.run"}
