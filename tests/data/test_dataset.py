"""Exact chronology against pandas, item text, and the shims that keep data whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
from helpers import DATASETS, write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"


UNFILTERED = {"user_inter_num_interval": None, "item_inter_num_interval": None}


def make(model="LRURec", dataset="tiny", **config):
    return create_dataset(Config(model=model, dataset=dataset, config_dict=config))


def last_two_by_pandas(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Each user's last two items by exact time; ties in file order."""
    frame = frame.sort_values("timestamp", kind="stable")
    return frame.groupby("user_id")["item_id"].apply(lambda items: list(items)[-2:]).to_dict()


def last_two_by_split(dataset) -> dict[str, list[str]]:
    """Each user's validation and test target."""
    config = dataset.config
    _, valid, test = data_preparation(config, dataset)
    result: dict[str, list[str]] = {}
    for loader in (valid, test):
        rows = loader.dataset.inter_feat
        users = dataset.id2token("user_id", rows["user_id"].numpy())
        items = dataset.id2token("item_id", rows["item_id"].numpy())
        for user, item in zip(users, items, strict=True):
            result.setdefault(user, []).append(item)
    return result


def read_ml_100k() -> pd.DataFrame:
    frame = pd.read_csv(ML_100K / "ml-100k.inter", sep="\t", dtype=str)
    frame.columns = [column.split(":")[0] for column in frame.columns]
    return frame.astype({"timestamp": "int64"})


@pytest.fixture(scope="session")
def ml_latest_small(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    source = DATASETS / "ml-latest-small" / "ratings.csv"
    if not source.is_file():
        pytest.skip(f"MovieLens-latest-small is not at {source}; set RECBOLE_DATA")
    frame = pd.read_csv(source, dtype=str)
    frame = frame.rename(columns={"userid": "user_id", "movieid": "item_id"})
    folder = tmp_path_factory.mktemp("data") / "ml-latest-small"
    folder.mkdir()
    columns = {
        "user_id": "user_id:token",
        "item_id": "item_id:token",
        "timestamp": "timestamp:float",
    }
    frame[list(columns)].rename(columns=columns).to_csv(
        folder / "ml-latest-small.inter", sep="\t", index=False
    )
    return folder.parent, frame.astype({"timestamp": "int64"})


def changed_share(expected: dict, found: dict) -> float:
    return np.mean([expected[user][-1] != found[user][-1] for user in expected])


def test_chronology_of_ml_100k(workdir):
    found = last_two_by_split(make(dataset="ml-100k", **UNFILTERED))
    assert found == last_two_by_pandas(read_ml_100k())


@pytest.mark.parametrize(("normalize_all", "share"), [(False, 0.1580), (True, 0.0042)])
def test_recboles_own_order_of_ml_100k(workdir, normalize_all, share):
    """RecBole's ml-100k.yaml normalizes all floats, which hides most of the loss of precision."""
    dataset = make(
        dataset="ml-100k", exact_chronology=False, normalize_all=normalize_all, **UNFILTERED
    )
    expected, found = last_two_by_pandas(read_ml_100k()), last_two_by_split(dataset)
    assert changed_share(expected, found) == pytest.approx(share, abs=0.0001)


@pytest.mark.parametrize("exact", [True, False])
def test_chronology_of_ml_latest_small(workdir, ml_latest_small, exact):
    folder, frame = ml_latest_small
    dataset = make(
        dataset="ml-latest-small",
        data_path=str(folder),
        exact_chronology=exact,
        item_text_format=None,
        load_col={"inter": ["user_id", "item_id", "timestamp"]},
        **UNFILTERED,
    )
    expected, found = last_two_by_pandas(frame), last_two_by_split(dataset)
    if exact:
        assert found == expected
    else:
        assert changed_share(expected, found) == pytest.approx(0.3623, abs=0.0001)


def test_order_without_exactness_is_recboles_own(workdir):
    ours = last_two_by_split(make(dataset="ml-100k", exact_chronology=False, **UNFILTERED))
    theirs = last_two_by_split(make(model="SASRec", dataset="ml-100k", train_neg_sample_args=None))
    assert ours == theirs


def test_ties_stand_in_file_order_even_after_removing_duplicates(workdir):
    folder = workdir / "data" / "ties"
    folder.mkdir(parents=True)
    items = ["c", "a", "b", "d", "a"]
    rows = [f"u{user}\t{item}\t5" for user in range(30) for item in items]
    (folder / "ties.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n"
    )
    dataset = make(
        dataset="ties",
        data_path=str(workdir / "data"),
        item_text_format=None,
        load_col=None,
        rm_dup_inter="first",
    )
    assert set(map(tuple, last_two_by_split(dataset).values())) == {("b", "d")}


@pytest.mark.parametrize(("keep", "rating"), [("first", 1.0), ("last", 2.0)])
def test_of_duplicates_of_the_same_time_the_files_first_or_last_line_stays(workdir, keep, rating):
    folder = workdir / "data" / "twice"
    folder.mkdir(parents=True)
    pairs = [f"u{user}\ti{item}\t{9 - item}" for user in range(30) for item in range(9)]
    rows = [f"{pair}\t{number}" for number in (1, 2) for pair in pairs]
    head = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
    (folder / "twice.inter").write_text("\n".join([head, *rows]) + "\n")
    dataset = make(
        dataset="twice",
        data_path=str(workdir / "data"),
        item_text_format=None,
        load_col=None,
        normalize_all=False,
        rm_dup_inter=keep,
    )
    assert dataset.inter_feat["rating"].tolist() == [rating] * len(pairs)


def test_item_text_of_ml_100k(workdir):
    texts = make(model="LRURec", dataset="ml-100k", **UNFILTERED).item_texts()
    assert texts[0] == "" and len(texts) == 1683
    assert texts.count("Toy Story (1995)") == 1
    raw = pd.read_csv(ML_100K / "ml-100k.item", sep="\t", dtype=str, keep_default_na=False)
    raw.columns = [column.split(":")[0] for column in raw.columns]
    expected = {
        " ".join(f"{title} ({year})".replace("()", "").split())
        for title, year in zip(raw.movie_title, raw.release_year, strict=True)
    }
    assert set(texts[1:]) == expected


def tiny(workdir, **config):
    write_dataset(workdir / "data", untitled=3)
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "year"]}
    settings = {
        "data_path": str(workdir / "data"),
        "load_col": columns,
        "item_text_format": "{title} ({year})",
        "item_text_missing": "drop",
    }
    return make(**(settings | config))


def test_items_without_text_are_dropped_before_filtering(workdir):
    dataset = tiny(workdir, user_inter_num_interval="[5,inf)")
    tokens = set(dataset.field2id_token["item_id"])
    assert not tokens & {"i0", "i1", "i2"}
    assert all(dataset.item_texts()[1:])
    counts = np.bincount(dataset.inter_feat["user_id"])
    assert counts[1:].min() >= 5  # dropping came first


def test_items_without_text_are_kept_with_a_fallback(workdir):
    dataset = tiny(workdir, item_text_missing="fallback")
    texts = dict(
        zip(dataset.field2id_token["item_id"], dataset.item_texts("Item {token}"), strict=True)
    )
    assert texts["i1"] == "Item i1"
    assert texts["i5"].endswith("(1955)")


def test_titles_that_pandas_would_take_for_missing_are_kept(workdir):
    folder = write_dataset(workdir / "data")
    file = folder / "tiny.item"
    lines = file.read_text().splitlines()
    lines[1:4] = ["i0\tNA\t1950", "i1\tNone\t1951", "i2\tnan\t1952"]
    file.write_text("\n".join(lines) + "\n")
    dataset = make(
        data_path=str(workdir / "data"),
        load_col={"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        item_text_format="{title}",
        item_text_missing="drop",
    )
    assert {"NA", "None", "nan"} <= set(dataset.item_texts())


def test_padding_item_has_padding_features(workdir):
    """pandas 3 made RecBole's own filling of missing values a silent no-op."""
    dataset = tiny(workdir, item_text_missing="fallback")
    make_feature = dataset.get_item_feature()
    assert make_feature["year"][0] == 0
    assert (make_feature["title"][0] == 0).all()


def test_float_features_have_no_nan(workdir):
    folder = write_dataset(workdir / "data")
    file = folder / "tiny.item"
    lines = file.read_text().splitlines()
    lines = (
        [lines[0] + "\tprice:float"] + [line + "\t2.5" for line in lines[1:-1]] + [lines[-1] + "\t"]
    )
    file.write_text("\n".join(lines) + "\n")
    dataset = make(
        data_path=str(workdir / "data"),
        load_col={"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]},
        item_text_format=None,
    )
    dataset.build()
    prices = dataset.get_item_feature()["price"]
    assert not prices.isnan().any() and prices[0] == 2.5


def test_user_with_one_interaction_and_unseen_item_work(workdir):
    dataset = tiny(workdir, item_text_missing="fallback")
    with (workdir / "data" / "tiny" / "tiny.item").open("a") as file:
        file.write("never\tNobody Saw This\t2000\n")
    dataset = make(
        data_path=str(workdir / "data"),
        load_col={"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        item_text_format="{title}",
        item_text_missing="drop",
    )
    assert "Nobody Saw This" in dataset.item_texts()
    assert "1" in dataset.field2token_id["user_id"]
    assert "1" not in last_two_by_split(dataset)
