"""The converter: every source, titles, damage, interruption, memory, and RecBole's reading."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, environment
from hypothesis import given
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset

from recbole_llamarec.data.convert.conversion import convert
from recbole_llamarec.data.convert.movielens import split_title
from recbole_llamarec.data.convert.raw_files import MAX_LINE_BYTES, ConversionError


def write(file: Path, text: str, encoding: str = "utf-8", compress: bool = False) -> None:
    data = text.encode(encoding)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if compress else data)


def rows(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def converted(source: str, folder: Path, **options):
    """Reports, interactions and items of a conversion of ``folder/raw``."""
    out = folder / "out" / "a-set"
    reports = convert(source, folder / "raw", out, **options)
    return reports, rows(out / "a-set.inter"), rows(out / "a-set.item")


INTER_HEAD = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]


# --- sources ------------------------------------------------------------------------------------


def test_movielens_latest(tmp_path):
    write(
        tmp_path / "raw/ratings.csv",
        "userId,movieId,rating,timestamp\n2,1,4.0,964982703\n1,3,0.5,964982703\n",
    )
    write(
        tmp_path / "raw/movies.csv",
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama|Romance\n'
        "3,Grumpier Old Men (1995),(no genres listed)\n",
    )
    reports, inter, item = converted("ml-latest", tmp_path)
    assert inter == [INTER_HEAD, ["2", "1", "4", "964982703"], ["1", "3", "0.5", "964982703"]]
    assert item == [
        ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"],
        ["1", "The American President", "1995", "Comedy Drama Romance"],
        ["3", "Grumpier Old Men", "1995", ""],
    ]
    assert [r.lines() for r in reports] == [
        ["ratings.csv: 2 rows written"],
        ["movies.csv: 2 rows written"],
    ]


def test_movielens_1m(tmp_path):
    write(tmp_path / "raw/ratings.dat", "1::10::5::978300760\n", "latin-1")
    write(tmp_path / "raw/movies.dat", "10::Misérables, Les (1995)::Drama|Musical\n", "latin-1")
    _, inter, item = converted("ml-1m", tmp_path)
    assert inter[1:] == [["1", "10", "5", "978300760"]]
    assert item[1:] == [["10", "Les Misérables", "1995", "Drama Musical"]]


def test_amazon_2014(tmp_path):
    write(tmp_path / "raw/ratings_Beauty.csv", "A1,B1,5.0,1369699200\nA2,B2,3.0,1355443200\n")
    metadata = [
        {"asin": "B1", "title": "Soap &amp; Water", "brand": "It's", "categories": [["Bath", "X"]]},
        {"asin": "B2", "price": 2.5},
    ]
    write(tmp_path / "raw/meta_Beauty.json.gz", "\n".join(map(repr, metadata)), compress=True)
    reports, inter, item = converted("amazon-2014", tmp_path)
    assert inter[1:] == [["A1", "B1", "5", "1369699200"], ["A2", "B2", "3", "1355443200"]]
    assert item[1:] == [["B1", "Soap & Water", "It's", "Bath X"], ["B2", "", "", ""]]
    assert reports[1].notes == {"items without a title": 1}


def test_amazon_2018(tmp_path):
    review = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1424304000}
    write(tmp_path / "raw/Games_5.json.gz", json.dumps(review) + "\n", compress=True)
    metadata = [
        {"asin": "B1", "title": "Chess", "brand": "X", "category": ["Toys", "Games", "Toys"]},
        {"asin": "B2", "title": "var aPageStart = (new Date()).getTime();"},
        {"asin": "B1", "title": "Chess again"},
    ]
    write(tmp_path / "raw/meta_Games.json.gz", "\n".join(map(json.dumps, metadata)), compress=True)
    reports, inter, item = converted("amazon-2018", tmp_path)
    assert inter[1:] == [["A1", "B1", "5", "1424304000"]]
    assert item[1:] == [["B1", "Chess", "X", "Toys Games"], ["B2", "", "", ""]]
    assert reports[1].notes == {
        "titles that are parts of a web page, taken for missing": 1,
        "items without a title": 1,
        "repeated items left out": 1,
    }


def test_amazon_2018_ratings_name_the_item_first(tmp_path):
    write(tmp_path / "raw/Games.csv", "B1,A1,5.0,1424304000\n")
    write(tmp_path / "raw/meta_Games.json", json.dumps({"asin": "B1", "title": "Chess"}))
    _, inter, _ = converted("amazon-2018", tmp_path)
    assert inter[1:] == [["A1", "B1", "5", "1424304000"]]


def test_amazon_2023_times_are_milliseconds(tmp_path):
    reviews = [
        {"user_id": "U", "parent_asin": "P", "asin": "B", "rating": 4, "timestamp": stamp}
        for stamp in (1588687728923, 1588687728000)
    ]
    write(tmp_path / "raw/Beauty.jsonl", "\n".join(map(json.dumps, reviews)))
    item = {"parent_asin": "P", "title": "Brush", "store": "S", "categories": []}
    write(tmp_path / "raw/meta_Beauty.jsonl", json.dumps(item))
    _, inter, items = converted("amazon-2023", tmp_path)
    assert [row[3] for row in inter[1:]] == ["1588687728.923", "1588687728"]
    assert items[1:] == [["P", "Brush", "S", ""]]


def test_real_movielens_latest_small(paper_data):
    inter = rows(paper_data / "ml-latest-small/ml-latest-small.inter")
    item = rows(paper_data / "ml-latest-small/ml-latest-small.item")
    assert len(inter) == 1 + 100836 and len(item) == 1 + 9742
    titles = {row[0]: (row[1], row[2]) for row in item}
    assert titles["858"] == ("The Godfather", "1972")
    assert titles["29"] == ("The City of Lost Children", "1995")
    assert titles["69757"] == ("(500) Days of Summer", "2009")
    assert all(title for title, _ in titles.values())


# --- titles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "title", "year"),
    [
        ("Godfather, The (1972)", "The Godfather", "1972"),
        ("Godfather: Part II, The (1974)", "The Godfather: Part II", "1974"),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)",) + (
            ("The City of Lost Children", "1995")
        ),
        ("Seven (a.k.a. Se7en) (1995)", "Seven", "1995"),
        ("Léon: The Professional (a.k.a. The Professional) (Léon) (1994)",) + (
            ("Léon: The Professional", "1994")
        ),
        ("Avventura, L' (Adventure, The) (1960)", "L'Avventura", "1960"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", "2009"),
        ("Death Note (2006–2007)", "Death Note", "2006"),
        ("Babylon 5", "Babylon 5", ""),
        ("1984 (1984)", "1984", "1984"),
        ("(1971)", "(1971)", ""),
        ("Vitelloni, I (1953)", "I Vitelloni", "1953"),
        ("Serial (2007– )", "Serial", "2007"),
        ("Some, de (1999)", "Some, de", "1999"),
        ("X (a (b) c) (1999)", "X", "1999"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_titles_as_the_paper_shows_them(text, title, year):
    assert split_title(text) == (title, year)


@given(st.text())
def test_no_title_is_lost_or_breaks_the_line(text):
    title, year = split_title(text)
    assert not set(title) & set("\t\n\r\x00") and title == " ".join(title.split())
    if any(char.isalnum() for char in text):
        assert title
    assert year == "" or len(year) == 4


# --- damage -------------------------------------------------------------------------------------


def test_damaged_lines_are_counted_and_reported(tmp_path):
    lines = [
        "userId,movieId,rating,timestamp",
        "1,1,4.0,5",
        "1,2,4.0",
        "1,3,four,5",
        "1,4,nan,5",
        "1,5,4.0,1e999",
        ",6,4.0,5",
        '1,"7,4.0,5',
        "1,8\x07,4.0,5",
        "2,1,4.0,6",
    ]
    write(tmp_path / "raw/ratings.csv", "\n".join(lines))
    (tmp_path / "raw/movies.csv").write_bytes(
        b"movieId,title,genres\n1,Caf\xe9 (1990),Drama\n2,Fine (1991),Drama\n"
        + b"3,"
        + b"x" * (MAX_LINE_BYTES + 9)
        + b",Drama\n4,Also Fine (1992),Drama\n"
    )
    reports, inter, item = converted("ml-latest", tmp_path)
    assert [row[0] for row in inter[1:]] == ["1", "2"]
    assert {reason: count for reason, (count, _, _) in reports[0].damaged.items()} == {
        "not 4 columns": 1,
        "the rating is not a number": 2,
        "the timestamp is not a number": 1,
        "no user": 1,
        "not a line of CSV": 1,
        "white space or control characters in the item": 1,
    }
    assert reports[0].damaged["the rating is not a number"][1:] == (4, "'1,3,four,5'")
    assert [row[0] for row in item[1:]] == ["2", "4"]
    assert set(reports[1].damaged) == {
        "not utf-8 text",
        f"longer than {MAX_LINE_BYTES} bytes",
    }
    assert "1 damaged lines left out: no user (first in line 7: ',6,4.0,5')" in "\n".join(
        reports[0].lines()
    )


def test_metadata_is_never_run(tmp_path):
    trap = tmp_path / "trap"
    write(tmp_path / "raw/ratings_Beauty.csv", "A1,B1,5.0,1369699200\n")
    lines = [
        f"__import__('pathlib').Path({str(trap)!r}).touch()",
        "{'asin': 'B9', 'title': [x for x in 'ab']}",
        "(" * 5000,
        "[1, 2]",
        "{'asin': 'B1', 'title': 'Soap'}",
    ]
    write(tmp_path / "raw/meta_Beauty.json", "\n".join(lines))
    reports, _, item = converted("amazon-2014", tmp_path)
    assert item[1:] == [["B1", "Soap", "", ""]]
    counts = {reason: count for reason, (count, _, _) in reports[1].damaged.items()}
    assert counts == {"not a Python literal": 3, "not a dictionary": 1}
    assert not trap.exists()


def test_damaged_json(tmp_path):
    review = {"user_id": "U", "parent_asin": "P", "rating": 4, "timestamp": 1588687728923}
    lines = [
        json.dumps(review),
        "{",
        "[]",
        json.dumps({**review, "rating": float("nan")}),
        json.dumps({**review, "user_id": None}),
        json.dumps({**review, "timestamp": True}),
        "[" * 100_000,
    ]
    write(tmp_path / "raw/Beauty.jsonl", "\n".join(lines))
    write(tmp_path / "raw/meta_Beauty.jsonl", json.dumps({"parent_asin": "P", "title": "Brush"}))
    reports, inter, _ = converted("amazon-2023", tmp_path)
    assert len(inter) == 2
    assert {reason: count for reason, (count, _, _) in reports[0].damaged.items()} == {
        "not a line of JSON": 2,
        "not a JSON object": 1,
        "the rating is not a number": 1,
        "no user": 1,
        "the timestamp is not a number": 1,
    }


def test_odd_values_are_read_or_counted(tmp_path):
    review = {"reviewerID": "U", "asin": "B1", "overall": 5.0, "unixReviewTime": 1}
    reviews = [
        json.dumps(review | {"price": float("nan")}),
        json.dumps(review | {"overall": "1_0"}),
        json.dumps(review | {"overall": "1e-50000"}),
        json.dumps(review | {"asin": "NA"}),
        json.dumps(review).replace("5.0", "5" * 5000),
        json.dumps(review | {"reviewerID": "\ud800"}),
    ]
    write(tmp_path / "raw/X.json", "\n".join(reviews))
    items = [{"asin": "B1", "title": "a\ud800b"}, {"asin": "B2", "title": "x" * 200_000}]
    write(tmp_path / "raw/meta_X.json", "\n".join(map(json.dumps, items)))
    reports, inter, item = converted("amazon-2018", tmp_path)
    assert inter[1:] == [["U", "B1", "5", "1"]]
    assert {reason: count for reason, (count, _, _) in reports[0].damaged.items()} == {
        "the rating is not a number": 2,
        "the item would be read as missing": 1,
        "not a line of JSON": 1,
        "white space or control characters in the user": 1,
    }
    assert [row[1] for row in item[1:]] == ["a b", "x" * 10_000]


def test_literals_that_would_eat_the_memory_are_refused(tmp_path):
    write(tmp_path / "raw/ratings_X.csv", "A1,B1,5.0,1\n")
    lines = ["{'asin': 'B1', 'title': 'a\\/b'}", "{'asin': 'B2', 'related': " + "[0," * 400_000]
    write(tmp_path / "raw/meta_X.json", "\n".join(lines))
    reports, _, item = converted("amazon-2014", tmp_path)
    assert len(item) == 2 and list(reports[1].damaged) == ["longer than 1000000 characters"]


# --- files --------------------------------------------------------------------------------------


def small(folder: Path) -> None:
    write(folder / "raw/ratings_X.csv.gz", "A1,B1,5.0,1\n" * 5000, compress=True)
    write(folder / "raw/meta_X.json.gz", "{'asin': 'B1', 'title': 'Soap'}\n", compress=True)


def test_an_incomplete_gzip_file_leaves_nothing(tmp_path):
    small(tmp_path)
    file = tmp_path / "raw/ratings_X.csv.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConversionError, match="incomplete or damaged gzip"):
        converted("amazon-2014", tmp_path)
    assert list((tmp_path / "out/a-set").iterdir()) == []


def test_a_killed_conversion_is_no_obstacle(tmp_path):
    small(tmp_path)
    write(tmp_path / "out/a-set/.a-set.seen.unfinished", "half a database")
    assert len(converted("amazon-2014", tmp_path)[1]) == 5001
    write(tmp_path / "out/file", "")
    with pytest.raises(ConversionError, match="is a file"):
        convert("amazon-2014", tmp_path / "raw", tmp_path / "out/file")


def test_nothing_is_overwritten_unless_asked_for(tmp_path):
    small(tmp_path)
    _, first, _ = converted("amazon-2014", tmp_path)
    with pytest.raises(ConversionError, match="exist already.*--overwrite"):
        converted("amazon-2014", tmp_path)
    write(tmp_path / "raw/ratings_X.csv.gz", "A2,B1,1.0,1\n")
    assert converted("amazon-2014", tmp_path, overwrite=True)[1] != first


@pytest.mark.parametrize(
    ("source", "change", "words"),
    [
        ("amazon-2014", lambda raw: (raw / "meta_X.json.gz").unlink(), ["no file", "meta_*.json"]),
        ("amazon-2014", lambda raw: write(raw / "ratings_Y.csv", ""), ["several", "ratings_Y.csv"]),
        ("amazon-2014", lambda raw: write(raw / "ratings_X.csv.gz", "?"), ["Nothing", "ratings_X"]),
        ("amazon-2018", lambda raw: None, ["no file", "It holds: meta_X.json.gz, ratings_X"]),
        ("ml-1m", lambda raw: None, ["no file", "ratings.dat", "It holds: meta_X.json.gz"]),
    ],
)
def test_wrong_folders_are_explained(tmp_path, source, change, words):
    small(tmp_path)
    change(tmp_path / "raw")
    with pytest.raises(ConversionError) as error:
        converted(source, tmp_path)
    assert all(word in str(error.value) for word in words)


def test_a_wrong_head_is_refused(tmp_path):
    write(tmp_path / "raw/ratings.csv", "1,2,3.0,4\n")
    write(tmp_path / "raw/movies.csv", "movieId,title,genres\n1,A,B\n")
    with pytest.raises(ConversionError, match="userid, movieid, rating, timestamp"):
        converted("ml-latest", tmp_path)


def test_command(tmp_path):
    small(tmp_path)
    command = [sys.executable, "-m", "recbole_llamarec.convert", "amazon-2014", "raw", "out/beauty"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ratings_X.csv.gz: 5000 rows written\nmeta_X.json.gz: 1 rows written\n"
    assert (tmp_path / "out/beauty/beauty.inter").is_file()
    again = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=100
    )
    assert again.returncode == 1 and "Not converted: OUT:" in again.stderr
    assert "Traceback" not in again.stderr


def peak_memory(folder: Path, n_lines: int) -> int:
    folder.mkdir()
    with (folder / "Beauty.jsonl").open("w") as reviews:
        for i in range(n_lines):
            row = {"user_id": f"U{i}", "parent_asin": f"P{i}", "rating": 4, "timestamp": i}
            reviews.write(json.dumps(row | {"text": "x" * 200}) + "\n")
    with (folder / "meta_Beauty.jsonl").open("w") as metadata:
        for i in range(n_lines):
            metadata.write(json.dumps({"parent_asin": f"P{i}", "title": f"T {i}"}) + "\n")
    tracemalloc.start()
    convert("amazon-2023", folder, folder / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_input(tmp_path):
    small_peak, large_peak = (peak_memory(tmp_path / str(n), n) for n in (1_000, 20_000))
    assert large_peak < small_peak + 200_000


# --- what RecBole reads -------------------------------------------------------------------------

TITLES = ['"Quoted" Soap', 'Soap "Quoted"', "NA", "Crème & Café", "'Single'", "a, b", "Line\nbreak"]


def test_recbole_reads_every_title_as_it_was(workdir):
    items = [{"asin": f"B{i}", "title": title} for i, title in enumerate(TITLES)]
    write(workdir / "raw/meta_X.json", "\n".join(map(json.dumps, items)))
    ratings = [f"B{i},A{user},5.0,{i}" for user in range(3) for i in range(len(TITLES))]
    write(workdir / "raw/X.csv", "\n".join(ratings))
    converted("amazon-2018", workdir)
    expected = ["Line break" if "\n" in title else title for title in TITLES]

    plain = {"quoting": csv.QUOTE_NONE, "keep_default_na": False}
    frame = pd.read_csv(workdir / "out/a-set/a-set.item", delimiter="\t", **plain)
    assert frame["title:token_seq"].tolist() == expected
    settings = {
        "data_path": str(workdir / "out"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
    }
    dataset = create_dataset(Config(model="LlamaRec", dataset="a-set", config_dict=settings))
    texts = dict(zip(dataset.field2id_token["item_id"], dataset.item_texts(), strict=True))
    assert {texts[f"B{i}"]: title for i, title in enumerate(expected)} == {t: t for t in expected}


def test_the_conversion_imports_no_recbole():
    """Whoever only converts files need not load RecBole and torch."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('recbole_llamarec')\n"  # the real one imports RecBole
        f"package.__path__ = [{str(ROOT / 'recbole_llamarec')!r}]\n"
        "sys.modules['recbole_llamarec'] = package\n"
        "import recbole_llamarec.data.convert.conversion\n"
        "print(sorted({'recbole', 'torch', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
