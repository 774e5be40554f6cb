"""Ready-made splits: histories in the files are read as items, and as items alone."""

from __future__ import annotations

import logging

import pytest
from atomic import ITEMS, histories_of, read, texts_of, write

from recbole_llamarec.data.atomic_files import DataSetError

HEAD = "user_id:token\titem_id:token\ttimestamp:float\titem_id_list:token_seq\n"
KEYS = {
    "benchmark_filename": ["train", "valid", "test"],
    "alias_of_item_id": ["item_id_list"],
    "MAX_ITEM_LIST_LENGTH": 5,
}


def split(
    root, train, valid="1\tc\t3\ta b\n", test="1\td\t4\ta b c\n", head=HEAD, item=ITEMS, **keys
):
    """The parts of a ready-made split."""
    parts = {"train_inter": train, "valid_inter": valid, "test_inter": test}
    write(root, item=item, **{name: head + rows for name, rows in parts.items()})
    return read(root, **(KEYS | keys)).build()


def test_histories_are_items_of_the_catalogue(workdir):
    train, valid, test = split(workdir, "1\tb\t2\ta\n")
    assert histories_of(train) == [("1", ["a"], "b")]
    assert histories_of(valid) == [("1", ["a", "b"], "c")]
    assert histories_of(test) == [("1", ["a", "b", "c"], "d")]
    assert train.item_num == 5


@pytest.mark.parametrize("alias", [None, ["other_list"]])
def test_histories_that_would_be_other_items_are_refused(workdir, alias):
    with pytest.raises(DataSetError, match=r"alias_of_item_id: .*Set alias_of_item_id: \[item_id"):
        split(workdir, "1\tb\t2\ta\n", alias_of_item_id=alias)


def test_a_split_without_histories_is_refused(workdir):
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    with pytest.raises(DataSetError, match="load_col: 'item_id_list'"):
        split(workdir, "1\tb\t2\ta\n", load_col=columns)
    head = HEAD.replace("token_seq", "token")
    with pytest.raises(DataSetError, match="item_id_list:token_seq"):
        split(workdir, "1\tb\t2\ta\n", head=head)


@pytest.mark.parametrize("padding", ["0", "[PAD]"])
def test_padding_in_a_history_is_no_item(workdir, padding):
    rows = f"1\tb\t2\ta {padding} {padding}\n2\tc\t5\t{padding} d b\n"
    train, _, test = split(workdir, rows)
    assert histories_of(train) == [("1", ["a"], "b"), ("2", ["d", "b"], "c")]
    assert train.inter_feat["item_length"].tolist() == [1, 2]
    assert train.item_num == test.item_num == 5


def test_an_item_with_the_id_0_is_an_item(workdir):
    train, *_ = split(workdir, "1\tb\t2\ta 0\n", item=ITEMS + "0\tZero\n")
    assert histories_of(train) == [("1", ["a", "0"], "b")]


def test_what_stands_at_the_place_of_padding_goes_too(workdir):
    head = HEAD.replace("\n", "\ttimestamp_list:float_seq\n")
    rows = "1\tb\t2\ta 0\t1 0\n2\tc\t5\t0 d b\t0 3 4\n"
    train, *_ = split(workdir, rows, "1\tc\t3\ta b\t1 2\n", "1\td\t4\ta b c\t1 2 3\n", head=head)
    assert train.inter_feat["timestamp_list"].tolist() == [[1, 0, 0], [3, 4, 0]]


def test_rows_without_a_history_are_left_out_and_counted(workdir, caplog):
    with caplog.at_level(logging.WARNING):
        train, valid, test = split(workdir, "1\tb\t2\t0 0\n1\tc\t3\ta\n2\ta\t1\t\n")
    assert histories_of(train) == [("1", ["a"], "c")]
    assert len(valid) == len(test) == 1
    assert "2 rows whose history is empty" in caplog.text
    with pytest.raises(DataSetError, match=r"s\.train\.inter: no row"):
        split(workdir, "1\tb\t2\t0 0\n")


def test_items_without_text_are_dropped_from_rows_and_histories(workdir):
    item = ITEMS.replace("b\tBeta", "b\t")
    rows = "1\tb\t2\ta\n1\td\t2\ta b c\n2\tc\t2\tb e\n2\tc\t2\tb d\n"  # e has no row
    train, valid, test = split(workdir, rows, item=item)
    assert histories_of(train) == [("1", ["a", "c"], "d"), ("2", ["d"], "c")]
    assert histories_of(valid) == [("1", ["a"], "c")]
    assert histories_of(test) == [("1", ["a", "c"], "d")]
    assert texts_of(train) == {"a": "Alpha", "c": "Gamma", "d": "Delta"}


def test_items_without_text_are_kept_under_the_fallback(workdir):
    item = ITEMS.replace("b\tBeta", "b\t")
    train, *_ = split(workdir, "2\tc\t2\tb e\n", item=item, item_text_missing="fallback")
    assert histories_of(train) == [("2", ["b", "e"], "c")]
    texts = texts_of(train, "Item {token}")
    assert texts == {"a": "Alpha", "b": "Item b", "c": "Gamma", "d": "Delta", "e": "Item e"}


def test_a_field_of_the_text_that_is_not_loaded_is_refused(workdir):
    columns = {"inter": ["user_id", "item_id", "timestamp", "item_id_list"], "item": ["item_id"]}
    with pytest.raises(ValueError, match="item_text_format: .*'title'.*load_col"):
        split(workdir, "1\tb\t2\ta\n", load_col=columns)


def test_other_names_of_the_id_fields(workdir):
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "film", "TIME_FIELD": "when"}
    head = "who:token\tfilm:token\twhen:token\tfilm_seq:token_seq\n"
    train, _, test = split(
        workdir,
        "1\tb\t2019-01-02\ta 0\n",
        "1\tc\t2019-01-03\ta b\n",
        "1\td\t2019-01-04\ta b c\n",
        head=head,
        item=ITEMS.replace("item_id", "film").replace("title", "name"),
        item_text_format="{name}",
        LIST_SUFFIX="_seq",
        alias_of_item_id=["film_seq"],
        **names,
    )
    assert histories_of(train) == [("1", ["a"], "b")]
    assert histories_of(test) == [("1", ["a", "b", "c"], "d")]
    assert texts_of(train)["d"] == "Delta"
