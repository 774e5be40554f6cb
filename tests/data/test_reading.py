"""Data sets from files as people write them: what is read, and what is refused by which words."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from atomic import INTER, ITEMS, data_set, last_items_of, read, texts_of, write

from recbole_llamarec.data.atomic_files import DataSetError

TEXTS = {"a": "Alpha", "b": "Beta", "c": "Gamma", "d": "Delta"}
LAST = {"1": "d", "2": "a"}


def with_title(title: str, kind: str = "token_seq") -> str:
    return ITEMS.replace("Beta", title).replace("token_seq", kind)


@pytest.mark.parametrize("kind", ["token", "token_seq"])
@pytest.mark.parametrize(
    "title", ['"Til Dawn', 'The "Weird" One', '"All"', "NA", "None", "nan", "null", "N/A", "#1"]
)
def test_titles_are_text_as_written(workdir, kind, title):
    assert texts_of(data_set(workdir, item=with_title(title, kind))) == TEXTS | {"b": title}


@pytest.mark.parametrize(
    ("separator", "title"),
    [
        (" ", "Two Words"),
        ("|", "Red | Blue"),
        (", ", "Godfather, The, II"),
        (",", "7,5"),
        ("e", "Bee"),
    ],
)
def test_separators_of_sequences_stay_in_titles(workdir, separator, title):
    dataset = data_set(workdir, item=with_title(title), seq_separator=separator)
    assert texts_of(dataset) == TEXTS | {"b": title}
    assert last_items_of(dataset) == LAST


@pytest.mark.parametrize("separator", [",", "|", "::", ";"])
def test_other_separators_of_fields(workdir, separator):
    inter, item = (text.replace("\t", separator) for text in (INTER, with_title('"B" b')))
    dataset = data_set(workdir, inter, item, field_separator=separator)
    assert texts_of(dataset) == TEXTS | {"b": '"B" b'}
    assert last_items_of(dataset) == LAST


def test_a_separator_of_fields_in_a_title_is_refused_by_its_line(workdir):
    inter, item = (text.replace("\t", ",") for text in (INTER, with_title("B, b")))
    with pytest.raises(DataSetError, match=r"s\.item, line 3: 3 fields.*no quoting"):
        data_set(workdir, inter, item, field_separator=",")


@pytest.mark.parametrize("marked", ["inter", "item", "both"])
def test_files_with_byte_order_marks_and_crlf_are_read(workdir, marked):
    mark = b"\xef\xbb\xbf"
    inter, item = (text.replace("\n", "\r\n").encode() + b"\r\n" for text in (INTER, ITEMS))
    dataset = data_set(
        workdir,
        mark + inter if marked != "item" else inter,
        mark + item if marked != "inter" else item,
    )
    assert texts_of(dataset) == TEXTS and last_items_of(dataset) == LAST


def test_items_without_a_row_are_kept_under_the_fallback(workdir):
    item = "item_id:token\ttitle:token_seq\tyear:token\tprice:float\tsize:float_seq\n" + (
        "a\tAlpha\t1950\t2\t1 2\nb\t\t1951\t3\t1\nc\tGamma\t1952\t4\t2\n"  # d has none
    )
    dataset = data_set(workdir, item=item, item_text_missing="fallback")
    expected = {"a": "Alpha", "b": "Item b", "c": "Gamma", "d": "Item d"}
    assert texts_of(dataset, "Item {token}") == expected
    assert last_items_of(dataset) == LAST
    features = dataset.get_item_feature()
    d = dataset.token2id("item_id", "d")
    assert features["title"][d].tolist() == [0] and features["year"][d] == 0
    assert features["price"][d] == 3 and features["size"][d].tolist() == [0, 0]


def test_items_without_a_row_or_text_are_dropped_and_named(workdir, caplog):
    item = ITEMS.replace("d\tDelta\n", "").replace("Beta", "")
    with caplog.at_level(logging.INFO):
        dataset = data_set(workdir, item=item)
    assert texts_of(dataset) == {"a": "Alpha", "c": "Gamma"}
    assert len(dataset.inter_feat) == 4
    assert "1 items of the interactions, such as 'd', have no row in s.item" in caplog.text
    assert "removed 1 items without text, and 4 interactions" in caplog.text


@pytest.mark.parametrize("missing", ["drop", "fallback"])
@pytest.mark.parametrize(
    ("written", "item"), [("0001", "1"), ("1.0", "1"), ("01", "1"), (" 1", "1"), ("I1", "i1")]
)
def test_ids_that_are_written_otherwise_are_said_to_match_none(workdir, missing, written, item):
    inter = INTER.split("\n")[0] + "".join(f"\n{user}\t{item}\t1" for user in "123")
    items = f"item_id:token\ttitle:token_seq\n{written}\tOne\n"
    with pytest.raises(DataSetError, match="No item of the interactions has a row") as raised:
        data_set(workdir, inter, items, item_text_missing=missing)
    assert repr(written) in str(raised.value) and repr(item) in str(raised.value)


def test_users_that_match_no_row_are_said_to_do_so(workdir):
    write(workdir, user="user_id:token\tage:token\nu1\t7\nu2\t8\n")
    with pytest.raises(DataSetError, match="No user .*s.inter has ids such as '1', s.user .*'u1'"):
        data_set(workdir)


def test_ids_are_compared_as_text(workdir):
    """1, 1.0 and 01 are three items."""
    ids = ["1", "1.0", "01"]
    inter = INTER.split("\n")[0] + "".join(f"\nu\t{item}\t{t}" for t, item in enumerate(ids))
    items = "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\tFilm {i}\n" for i in ids)
    dataset = data_set(workdir, inter, items)
    assert texts_of(dataset) == {"1": "Film 1", "1.0": "Film 1.0", "01": "Film 01"}


def test_words_for_missing_values_are_ids(workdir):
    dataset = data_set(workdir, INTER.replace("\ta\t", "\tNA\t"), ITEMS.replace("a\tA", "NA\tA"))
    assert texts_of(dataset)["NA"] == "Alpha"


def test_the_first_row_of_a_repeated_id_counts(workdir, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = data_set(workdir, item=ITEMS + "b\tSecond\n\tNo id\na\tOther\n")
    assert texts_of(dataset) == TEXTS
    assert "2 rows repeat an id of a row before, such as 'b'" in caplog.text
    assert "1 rows without item_id" in caplog.text


def test_interactions_without_ids_are_left_out_and_counted(workdir, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = data_set(workdir, INTER + "\tb\t9\n1\t\t9\n")
    assert last_items_of(dataset) == LAST and "2 interactions without" in caplog.text


def test_text_of_a_field_that_the_model_does_not_keep(workdir):
    dataset = data_set(workdir, unused_col={"item": ["title"]})
    dataset.build()
    assert texts_of(dataset) == TEXTS


def test_other_names_of_the_id_fields(workdir):
    inter = "who:token\tfilm:token\twhen:float\n" + INTER.split("\n", 1)[1]
    item = ITEMS.replace("item_id", "film").replace("title", "name")
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "film", "TIME_FIELD": "when"}
    dataset = data_set(workdir, inter, item, item_text_format="{name}", **names)
    assert texts_of(dataset) == TEXTS and last_items_of(dataset) == LAST


@pytest.mark.parametrize(
    ("key", "field"), [("USER_ID_FIELD", "user_id"), ("ITEM_ID_FIELD", "item_id")]
)
def test_an_id_field_that_the_files_lack_is_refused_by_its_key(workdir, key, field):
    inter = INTER.replace(f"{field}:token", "other:token")
    with pytest.raises(DataSetError, match=f"{key}: '{field}' .*other"):
        data_set(workdir, inter)
    inter = INTER.replace(f"{field}:token", f"{field}:float")
    with pytest.raises(DataSetError, match=f"{key}: '{field}' is of type float"):
        data_set(workdir, inter)


def test_an_items_file_without_its_ids_is_refused_by_the_key(workdir):
    with pytest.raises(DataSetError, match=r"s\.item: 'item_id'.*ITEM_ID_FIELD.*movie"):
        data_set(workdir, item=ITEMS.replace("item_id", "movie"))


def test_a_file_without_rows_is_refused(workdir):
    with pytest.raises(DataSetError, match=r"s\.item has no rows"):
        data_set(workdir, item=ITEMS.split("\n")[0] + "\n")


def test_items_without_any_text_leave_nothing(workdir):
    item = "item_id:token\ttitle:token_seq\na\t\nb\t\nz\tZeta\n"
    with pytest.raises(DataSetError, match="item_text_missing: drop leaves no interaction"):
        data_set(workdir, item=item)


def test_the_other_columns_are_as_recbole_reads_them(workdir):
    """Against RecBole's own reading, on files without anything that the two read otherwise."""
    item = "item_id:token\ttitle:token_seq\tprice:float\tsize:float_seq\n" + (
        "a\tOne Two\t1.5\t1 2\nb\tTwo\t\t3\nc\tThree\t2.5\t\nd\tOne\t-1\t1 2 3\n"
    )
    write(workdir, inter=INTER, item=item)
    ours = read(workdir, seq_len={"size": 2})
    theirs = read(workdir, model="SASRec", seq_len={"size": 2}, train_neg_sample_args=None)
    for dataset in (ours, theirs):
        dataset.build()
    for features in ("item_feat", "inter_feat"):
        one, other = getattr(ours, features), getattr(theirs, features)
        assert list(one.columns) == list(other.columns)
        for field in one.columns:
            assert np.array_equal(one[field], other[field]), field
    for properties in ("field2type", "field2source", "field2seqlen", "field2bucketnum"):
        assert getattr(ours, properties) == getattr(theirs, properties)


def test_recboles_own_models_read_quotation_marks_alike(workdir):
    """Which would otherwise lose the items of the lines that a quotation mark swallows."""
    write(workdir, inter=INTER, item=with_title('"Til Dawn'))
    dataset = read(workdir, model="SASRec", train_neg_sample_args=None)
    assert set(dataset.field2id_token["item_id"]) == {"[PAD]", *TEXTS}
    assert '"Til' in dataset.field2id_token["title"]
