"""The users' table as a file: it is read as written, or the line that is wrong is named."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from recbole_llamarec.evaluation.users_file import read_run_users, write_users

# ndcg@2: 1 at rank 1, 1 / log2(3) at rank 2, 0 behind
AT_2 = 0.6309297535714575
USERS = pd.DataFrame(
    {
        "user_id": ["NA", "07", 'a,"b'],
        "item_id": ["i1", "i2", "i3"],
        "rank:SASRec": [1, 2, 30],
        "ndcg@2:SASRec": [1.0, AT_2, 0.0],
        "rank:letters": [2, 1, 30],
        "ndcg@2:letters": [AT_2, 1.0, 0.0],
        "history_length": [3, 4, 5],
        "target_count": [9, 8, 0],
        "first:letters": [1.0, 0.0, np.nan],
        "first_count:letters": [7.0, 8.0, np.nan],
    }
)


@pytest.fixture
def file(tmp_path):
    """A table of three rows."""
    write_users(tmp_path / "a.users.csv", USERS)
    return tmp_path / "a.users.csv"


def test_a_table_is_read_as_it_was_written(file):
    assert file.read_text().splitlines()[1].endswith(",1 of 3")
    pd.testing.assert_frame_equal(read_run_users(file), USERS, check_dtype=False)
    packed = file.with_name("b.csv.gz")
    packed.write_bytes(gzip.compress(file.read_bytes().replace(b"\n", b"\r\n")))
    pd.testing.assert_frame_equal(read_run_users(packed), USERS, check_dtype=False)


def test_a_table_of_an_earlier_version_has_no_numbers_of_rows(file):
    USERS.to_csv(file, index=False)
    pd.testing.assert_frame_equal(read_run_users(file), USERS, check_dtype=False)
    pd.concat([USERS, USERS[1:2]]).to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"a\.users\.csv, line 5: the row is there twice"):
        read_run_users(file)


def test_wherever_a_table_is_cut_it_is_refused(file):
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.users\.csv, line [1-4]: .*Evaluate"):
            read_run_users(file)


def swapped(text: str, one: str, other: str) -> str:
    return text.replace(one, "?").replace(other, one).replace("?", other)


DAMAGED = {
    "first row missing": (lambda t: t.replace(t.splitlines()[1] + "\n", ""), 2, "rows are missing"),
    "row twice": (lambda t: t + t.splitlines()[3] + "\n", 2, "'1 of 3' where '1 of 4'"),
    "rows swapped": (lambda t: swapped(t, *t.splitlines()[1:3]), 2, "in another order"),
    "word": (lambda t: t.replace(",3,9,", ",three,9,"), 2, "history_length is 'three'"),
    "NaN": (lambda t: t.replace(",3,9,", ",3,nan,"), 2, "target_count is 'nan'"),
    "infinite": (lambda t: t.replace(",0.0,30", ",1e999,30"), 4, "ndcg@2:SASRec is '1e999'"),
    "empty rank": (
        lambda t: t.replace("i2,2,", "i2,,"),
        3,
        "rank:SASRec is '', but must be a rank",
    ),
    "rank 0": (lambda t: t.replace("i2,2,", "i2,0,"), 3, "rank:SASRec is '0'"),
    "half a rank": (lambda t: t.replace("i2,2,", "i2,2.5,"), 3, "rank:SASRec is '2.5'"),
    "another rank": (lambda t: t.replace("i2,2,", "i2,7,"), 3, "0.6309.*but 0.0000 at rank 7"),
    "a gap": (lambda t: t.replace(",8.0,2 of", ",,2 of"), 3, "first_count:letters one is empty"),
    "no id": (lambda t: t.replace("07,", ","), 3, "user_id is empty"),
    "too few fields": (lambda t: t.replace("07,", ""), 3, "10 fields, where the header has 11"),
    "too many fields": (lambda t: t.replace("07,", "07,08,"), 3, "12 fields"),
    "empty line": (lambda t: t + "\n", 5, "0 fields"),
    "header twice": (lambda t: t.replace("item_id", "user_id"), 1, "'user_id' twice"),
    "headers swapped": (
        lambda t: swapped(t, "history_length", "target_count"),
        1,
        "'target_count' where a run writes 'history_length'",
    ),
    "stages swapped": (lambda t: swapped(t, "rank:SASRec", "rank:letters"), 1, "header has"),
    "metric misspelt": (lambda t: t.replace("ndcg@2:l", "ndgc@2:l"), 1, "'ndgc@2:letters' where"),
    "stage misspelt": (lambda t: t.replace("rank:letters", "rnk:letters"), 1, "'rnk:letters'"),
    "no header": (lambda t: t.partition("\n")[2], 1, "."),
    "no row": (lambda t: t.partition("\n")[0] + "\n", 1, "no row"),
    "open quotes": (lambda t: t.replace("07", '"07'), 3, "cannot be read"),
    "U+0000": (lambda t: t.replace("07", "0\0"), 3, r"U\+0000"),
    "BOM": (lambda t: "\ufeff" + t, 1, "byte order mark"),
    "blank": (lambda t: "\n\n", 1, "."),
    "empty": (lambda t: "", 1, "empty"),
}


@pytest.mark.parametrize(("damage", "line", "words"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_named_by_its_line(damage, line, words, file):
    text = file.read_text()
    assert (changed := damage(text)) != text
    file.write_text(changed)
    with pytest.raises(ValueError, match=rf"a\.users\.csv, line {line}: .*{words}.*Evaluate"):
        read_run_users(file)


def test_bytes_that_are_no_text_are_named_by_their_line(file):
    content = file.read_bytes()
    for changed, line, words in [
        (content.replace(b"07", b"0\xff"), 3, "no text in UTF-8"),
        (content.decode().encode("utf-16"), 1, "no text in UTF-8"),
        (gzip.compress(content)[:-1], 1, "no whole gzip file"),
    ]:
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"line {line}: .*{words}"):
            read_run_users(file)
