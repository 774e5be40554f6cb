"""Tables of candidates: three forms of one content, and what is wrong with others."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from recbole_llamarec.retrieval.candidate_file import read_candidates

USERS = {"[PAD]": 0, "u1": 1, "u2": 2}
ITEMS = {"[PAD]": 0, "a": 1, "b": 2, "c": 3}
ROWS = [("u1", "b", 0.5), ("u2", "a", -1.25), ("u1", "c", 2.0), ("u9", "a", 1.0), ("u2", "x", 0.0)]


def write(folder, ending: str, rows=ROWS):
    file = folder / f"candidates{ending}"
    if ending == ".parquet":
        pd.DataFrame(rows, columns=["user", "item", "score"]).to_parquet(file)
    elif ending == ".tsv":
        lines = ["item\tnote\tscore\tuser", *(f"{i}\t-\t{s}\t{u}" for u, i, s in rows)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    else:
        file.write_text("".join(f"{u} Q0 {i} 7 {s} tag\n" for u, i, s in rows) + "\n")
    return file


@pytest.mark.parametrize("ending", [".tsv", ".run", ".parquet"])
def test_every_form_is_read_and_unknown_tokens_are_left_out(tmp_path, ending):
    table = read_candidates(write(tmp_path, ending), USERS, ITEMS)
    assert (table.users.tolist(), table.items.tolist()) == ([1, 2, 1], [2, 1, 3])
    assert table.scores.tolist() == [0.5, -1.25, 2.0] and table.scores.dtype == np.float32
    assert table.n_rows == 5


@pytest.mark.parametrize("value", ["nan", "inf", "-2e30", "", "high"])
def test_a_score_that_is_no_finite_number_is_named_with_its_line(tmp_path, value):
    file = write(tmp_path, ".tsv", [*ROWS, ("u1", "a", value)])
    with pytest.raises(ValueError, match=f"line 7: the score '{value}' must be a number"):
        read_candidates(file, USERS, ITEMS)


@pytest.mark.parametrize(("ending", "places"), [(".run", "4.* 1"), (".parquet", "4.* 1")])
def test_a_pair_that_repeats_is_named_with_both_lines(tmp_path, ending, places):
    file = write(tmp_path, ending, [*ROWS[:3], ("u1", "b", 0.75)])
    with pytest.raises(ValueError, match=places.replace(".*", ": its user and item stand in line")):
        read_candidates(file, USERS, ITEMS)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.tsv", b"u1\ta\t1\n", "line 1: the header must name user, item, score"),
        ("a.tsv", b"user\titem\tscore\nu1\ta\t1\n\nu1\tb\n", "line 4: 2 fields, .* has 3"),
        ("a.tsv", b"", "none of its 0 rows"),
        ("a.run", b"u1 Q0 a 1 2.0\n", "line 1: 5 fields, but a TREC run has 6"),
        ("a.run", b"u1 Q0 a 1 2.0 t\nu\xff Q0 a 1 2.0 t\n", "no text in UTF-8"),
        ("a.run", b"x Q0 a 1 2.0 t\n", "none of its 1 rows .* users are such as 'u1' .* 'a'"),
        ("a.parquet", b"user\titem\n", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, fault):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}(:|, ).*{fault}"):
        read_candidates(file, USERS, ITEMS)


def test_parquet_needs_its_columns_and_its_reader(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    pd.DataFrame({"user": ["u1"], "item": ["a"]}).to_parquet(file)
    with pytest.raises(ValueError, match="columns user, item, score"):
        read_candidates(file, USERS, ITEMS)
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_candidates(file, USERS, ITEMS)
