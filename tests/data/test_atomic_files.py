"""Atomic files are text as written; what cannot be read is named by file and line."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_llamarec.data.atomic_files import DataSetError, read_atomic_file

HEAD = "item_id:token\ttitle:token_seq\tprice:float\n"


def read(tmp_path, content: str | bytes, separator: str = "\t", encoding: str | None = "utf-8"):
    path = tmp_path / "s.item"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_atomic_file(path, separator, encoding, lambda _: True)


def fault_of(tmp_path, content: str | bytes, **options) -> str:
    with pytest.raises(DataSetError) as raised:
        read(tmp_path, content, **options)
    return str(raised.value)


def test_fields_are_text_as_written(tmp_path):
    titles = ['"Til Dawn', 'The "Weird" River', '"Quoted"', "12' \\ #1", " two  spaces ", ""]
    rows = [f"i{n}\t{title}\t1\n" for n, title in enumerate(titles)]
    file = read(tmp_path, HEAD + "".join(rows))
    assert file.columns["title"] == titles
    assert file.columns["item_id"] == ["i0", "i1", "i2", "i3", "i4", "i5"]
    assert file.types == {"item_id": "token", "title": "token_seq", "price": "float"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [0, 1, 3])
def test_line_ends_and_blank_lines_at_the_end_are_no_rows(tmp_path, end, last):
    content = end.join([HEAD.rstrip(), "a\tA\t1", "b\tB\t2"]) + end * last
    assert read(tmp_path, content).columns == {
        "item_id": ["a", "b"],
        "title": ["A", "B"],
        "price": ["1", "2"],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", None])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    content = b"\xef\xbb\xbf" + (HEAD + "a\tÄ\t1\n").encode()
    file = read(tmp_path, content, encoding=encoding)
    assert list(file.columns) == ["item_id", "title", "price"]
    assert file.columns["title"] == ["Ä"]


def test_a_separator_of_several_characters_is_no_pattern(tmp_path):
    file = read(tmp_path, "item_id:token||title:token\na||A|B\nb||C. D\n", separator="||")
    assert file.columns == {"item_id": ["a", "b"], "title": ["A|B", "C. D"]}


@pytest.mark.parametrize(("line", "n_fields"), [("b\tB", 2), ("b\tB\tB\t2", 4)])
def test_a_line_of_other_fields_than_the_head_is_named(tmp_path, line, n_fields):
    fault = fault_of(tmp_path, f"{HEAD}a\tA\t1\n\n{line}\nc\tC\t3\n")
    assert "s.item, line 4:" in fault and f"{n_fields} fields" in fault
    assert "names 3" in fault and "field_separator" in fault


def test_a_text_in_a_column_of_numbers_is_named_by_its_line(tmp_path):
    file = read(tmp_path, f"{HEAD}a\tA\t\n\nb\tB\tNaN\nc\tC\tcheap\n")
    with pytest.raises(DataSetError, match=r"s\.item, line 5: price:float holds 'cheap'"):
        file.numbers("price")


def test_numbers_and_lists_of_numbers(tmp_path):
    file = read(tmp_path, "x:float\ty:float_seq\n-1.5\t1 2\n\t3\nNA\t\n")
    assert np.array_equal(file.numbers("x"), [-1.5, np.nan, np.nan], equal_nan=True)
    lists = file.number_lists("y", " ")
    assert [values.tolist() for values in lists] == [[1, 2], [3], []]
    assert {values.dtype for values in lists} == {np.dtype(np.float64)}


def test_words_for_missing_values_are_tokens(tmp_path):
    words = ["NA", "null", "None", "nan", "N/A", "#N/A"]
    content = "item_id:token\n" + "\n".join(words) + "\n"
    assert read(tmp_path, content).tokens("item_id").tolist() == words
    assert np.isnan(read(tmp_path, "a:token\tb:token\n\tx\n").tokens("a")[0])


def test_a_file_in_latin_1_is_refused_with_its_line_and_read_by_its_name(tmp_path):
    content = (HEAD + "a\tA\t1\nb\tCafé\t1\n").encode("latin-1")
    fault = fault_of(tmp_path, content)
    assert "s.item, line 3:" in fault and "encoding: utf-16 or latin-1" in fault
    assert read(tmp_path, content, encoding="latin-1").columns["title"] == ["A", "Café"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_refused_and_read_by_its_name(tmp_path, encoding):
    content = (HEAD + "a\tÄ\t1\n").encode(encoding)
    fault = fault_of(tmp_path, content)
    assert "s.item" in fault and "UTF-16" in fault and "encoding: utf-16" in fault
    assert read(tmp_path, content, encoding=encoding).columns["title"] == ["Ä"]


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ("item_id\ttitle", "'item_id'"),
        ("item_id:token\ttitle:text", "'title:text'"),
        ("item_id:token,title:token_seq", "'item_id:token,title:token_seq'"),
        ("item_id:token\titem_id:token", "twice"),
        ("", "''"),
    ],
)
def test_a_head_line_without_types_is_refused(tmp_path, head, word):
    fault = fault_of(tmp_path, f"{head}\na\tA\n" if head else "")
    assert "s.item, line 1:" in fault and word in fault
