"""The files of a suite's results, and the tables that are made of them."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace

import pytest
from helpers import ROOT
from page import latex, markdown_page, write_page
from results import add_cell, read_cells, read_report, read_users, retired_cells, write_cells
from run import Runner
from significance import markdown_significance, significance
from small_suite import line_of, small_suite, users_of
from suite import read_suite
from tables import Row, markdown_comparison, rows_of, suite_groups
from validation_table import HEAD, validation_row, validation_rows

# --- the files of results -------------------------------------------------------------------------


def test_lines_and_users_are_added_and_replaced(tmp_path):
    _, cells = small_suite(tmp_path)
    one, two, three = (line_of(cell, 0.1) for cell in cells[:3])
    add_cell(tmp_path, one | {"machine": "Ranker’s\u2028"}, users_of(0.1, ["NA", "07", "a,b"]))
    add_cell(tmp_path, two)
    content = (tmp_path / "users.csv.gz").read_bytes()
    add_cell(tmp_path, three, users_of(0.2))
    add_cell(tmp_path, one | {"machine": "again"}, users_of(0.3, "def"))
    assert [line["machine"] for line in read_cells(tmp_path).values()] == ["again", *2 * ["a CPU"]]
    users = read_users(tmp_path)
    assert list(users.columns[:4]) == ["cell", "user", "rank:LRURec", "ndcg@10:LRURec"]
    assert dict(zip(users["user"], users["cell"], strict=True)) == {
        **dict.fromkeys("abc", three["id"]),
        **dict.fromkeys("def", one["id"]),
    }
    (tmp_path / "users.csv.gz").write_bytes(content)
    assert sorted(read_users(tmp_path)["user"]) == ["07", "NA", "a,b"]
    assert not list(tmp_path.glob(".*"))


def changed(**changes):
    """What makes another line of a cell's."""
    return lambda text: json.dumps(json.loads(text) | changes).encode()


def without(name: str):
    """What takes a field out of a cell's line."""
    return lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k != name}
    ).encode()


DAMAGED = {
    "cut": (lambda text: text[:200], "Unterminated|delimiter"),
    "empty": (lambda text: b"", "Expecting value"),
    "no object": (lambda text: b"[1]", "no JSON object"),
    "too deep": (lambda text: b"[" * 100_000, "nested too deeply"),
    "no UTF-8": (lambda text: text.replace(b"LRURec", b"\xff\xfe"), "utf-8"),
    "BOM": (lambda text: b"\xef\xbb\xbf" + text, "BOM"),
    "a field twice": (lambda text: text[:-1] + b', "seed": 7}', "there twice"),
    "NaN": (changed(valid_score=float("nan")), "NaN is no finite number"),
    "infinite": (
        lambda text: text.replace(b'"valid_score": 0.1', b'"valid_score": 1e999'),
        "1e999",
    ),
    "word": (changed(valid_score="0.1"), "valid_score: .*valid number"),
    "other type": (changed(curve={"1": 2}), "curve: "),
    "truth for a number": (changed(n_rows=True), "n_rows: "),
    "no id": (without("id"), "id: Field required"),
    "no test": (without("test"), "test: Field required"),
    "no final stage": (changed(test={}), "test: the stage 'final' is missing"),
    "metric misspelt": (
        changed(test={"LRURec": {"ndcg@10": 0.1}, "final": {"ndgc@10": 0.1}}),
        "test: LRURec has \\['ndcg@10'\\], which 'final' lacks",
    ),
    "metric missing": (
        changed(test={"LRURec": {}, "final": {}}),
        "test: 'final' lacks the validation metric 'ndcg@10'",
    ),
    "another seed": (changed(seed=9), "its id is not that of its settings"),
    "there twice": (lambda text: text + b"\n" + text, "is there twice"),
}


@pytest.mark.parametrize("damage, words", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_named_with_what_to_do(damage, words, tmp_path):
    _, (first, *_, cell) = small_suite(tmp_path)
    lines = [json.dumps(line_of(each, 0.2)).encode() for each in (first, cell)]
    damaged = damage(lines[1])
    number = 3 if damaged.startswith(lines[1] + b"\n") else 2
    (tmp_path / "cells.jsonl").write_bytes(lines[0] + b"\n" + damaged + b"\n")
    with pytest.raises(ValueError, match=rf"cells.jsonl, line {number}: .*({words}).*delete this"):
        read_cells(tmp_path)


def test_a_damaged_table_of_users_is_named(tmp_path):
    _, (*_, cell) = small_suite(tmp_path)
    add_cell(tmp_path, line_of(cell, 0.1), users_of(0.1))
    file = tmp_path / "users.csv.gz"
    content = file.read_bytes()
    text = gzip.decompress(content).decode()
    for damaged, line, words in [
        (content[:-9], 1, "no whole gzip file"),
        (b"", 1, "the file is empty"),
        (text.encode(), 1, "no whole gzip file"),
        (gzip.compress(text.replace(",b,", ",,").encode()), 3, "user is empty"),
        (gzip.compress((text + text.splitlines()[2] + "\n").encode()), 5, "there twice"),
        (gzip.compress(text.replace("cell,user", "cell,usr").encode()), 1, "lacks"),
    ]:
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"users.csv.gz, line {line}: .*{words}.*Restore"):
            read_users(tmp_path)


def test_a_changed_line_is_named_unless_it_is_retired_by_hand(tmp_path):
    _, (*_, cell) = small_suite(tmp_path)
    add_cell(tmp_path, line_of(cell, 0.1))
    file = tmp_path / "cells.jsonl"
    text = file.read_text()
    assert read_cells(tmp_path)[cell.id] == json.loads(json.dumps(line_of(cell, 0.1)))
    file.write_text(text.replace('"ndcg@10": 0.1', '"ndcg@10": 0.2'))
    with pytest.raises(ValueError, match="line 1: .*changed since it was written.*delete this"):
        read_cells(tmp_path)
    file.write_text(text.replace('"seed": ', '"retired": true, "seed": '))
    assert read_cells(tmp_path)[cell.id]["retired"] is True


def test_users_that_are_missing_are_named(tmp_path):
    _, (*_, cell) = small_suite(tmp_path)
    add_cell(tmp_path, line_of(cell, 0.1, n_rows=4), users_of(0.1))
    with pytest.raises(ValueError, match=f"has 3 rows of the cell {cell.id}, whose test had 4"):
        read_users(tmp_path)


def test_figures_of_no_benchmark_are_named(tmp_path):
    file = tmp_path / "speed.json"
    for text in ("", "{", "[]", '{"conditions": 1}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"speed\.json holds no figures.*restore"):
            read_report(file, "conditions")


def test_the_page_shows_retired_cells_apart(tmp_path):
    suite, cells = small_suite(tmp_path)
    lines = {cell.id: line_of(cell, 0.2) for cell in cells}
    gone = replace(cells[-1], label="by another way", settings={"ranking_method": "generate"})
    lines |= {gone.id: line_of(gone, 0.3456, retired=True)}
    forgotten = replace(gone, seed=9)
    lines |= {forgotten.id: line_of(forgotten, 0.789)}
    write_cells(tmp_path, lines)
    current = {cell.id: lines[cell.id] for cell in cells}
    assert set(retired_cells(lines, current)) == {gone.id}
    write_page(suite, current, tmp_path)
    above, below = (tmp_path / "README.md").read_text().split("## Retired settings")
    assert "4 of 4 cells are finished (1 retired cells" in above and "0.3456" not in above
    assert "| by another way | ours | 0.3456 |" in below and "### Cost" in below
    assert "0.7890" not in above + below


def test_no_section_of_the_page_is_empty(tmp_path):
    """Models that the paper's tables do not have, without users."""
    suite, cells = small_suite(tmp_path)
    plans = {"tiny": tuple(replace(plan, label=f"my {plan.name}") for plan in suite.plans["tiny"])}
    suite = replace(suite, plans={"tiny": (plans["tiny"][0],)})
    results = {cell.id: line_of(cell, 0.2) for cell in suite.cells({})}
    page = markdown_page(suite, results, {}, read_users(tmp_path))
    assert "## Test results" in page and "## Valid retrieval" not in page
    for section in page.split("\n## ")[1:]:
        assert section.partition("\n")[2].strip(), section


def test_the_committed_results_are_few_files_with_ordinary_names():
    files = [file for file in (ROOT / "benchmarks" / "results").rglob("*") if file.is_file()]
    assert len(files) <= 40
    assert [f.name for f in files if not re.fullmatch(r"[A-Za-z0-9.-]+", f.name)] == []


@pytest.mark.parametrize(
    "name", ["paper", "ranker", "settings", "retrievers", "ablation", "ablation-ties"]
)
def test_the_committed_page_is_that_of_the_committed_lines(name, tmp_path):
    folder = ROOT / "benchmarks" / "results" / name
    suite = read_suite(ROOT / "benchmarks" / "suites" / f"{name.removesuffix('-ties')}.yaml")
    lines, results = read_cells(folder), Runner(suite, tmp_path, folder, tmp_path, 1).results()
    retired = retired_cells(lines, results)
    assert len(results) + len(retired) == len(lines)
    page = markdown_page(suite, results, retired, read_users(folder))
    assert page == (folder / "README.md").read_text()


# --- tables -------------------------------------------------------------------------------------


def row(model: str, values: list[float], published: float | None = None) -> Row:
    known = {} if published is None else {"ndcg@10": published}
    return Row("a_set", model, {"ndcg@10": values}, known, {})


def test_ours_stand_beside_the_published_figures():
    table = markdown_comparison([row("LRURec", [0.06, 0.08], 0.0705), row("NARM", [0.05])])
    assert "| LRURec | ours | 0.0700 ± 0.0141 |" in table
    assert "|  | published | 0.0705 |\n|  | ratio | 0.99 |" in table
    assert table.endswith("| NARM | ours | 0.0500 |")  # the paper has no such row


def test_latex_marks_the_best():
    table = latex([row("LRURec", [0.06, 0.08]), row("NARM", [0.05])])
    assert r"a\_set & LRURec & \textbf{0.0700 $\pm$ 0.0141} \\" in table
    assert r"a\_set & NARM & 0.0500 \\" in table


@pytest.mark.parametrize("scoring", ["fusion", "label prior and fusion"])  # now, and in 0.1
def test_a_setting_has_its_gain_and_its_time(scoring):
    stages = {name: {"ndcg@10": v} for name, v in (("LRURec", 0.1), ("verbalizer", 0.05))}
    stages["final"] = {"ndcg@10": 0.2}
    fusion = {"n_rows": 50, "weight": 0.3, "gain": 0.04, "p_value": 0.002, "evidence": None}
    seconds = {"stages": {scoring: 25.0, "tuning the ranker": 90.0}}
    cell = {"label": "letters", "settings": {"epochs": 1}, "valid_stages": stages}
    cell |= {"fusion": fusion, "seconds": seconds}
    expected = ["letters", "50", "0.1000", "–", "0.0500", "0.2000", "–", "0.0400", "0.002"]
    assert validation_row(cell, "ndcg@10") == [*expected, "0.300", "0.50", "1.5"]
    evidence = {"gain": 0.08}
    cell |= {"fusion": {**fusion, "evidence": evidence}, "settings": {"epochs": 0}}
    cell["valid_stages"] = {**stages, "LRURec + evidence": {"ndcg@10": 0.15}}
    line = validation_row(cell, "ndcg@10")
    assert line[3] == "0.1500" and line[6] == "0.0800" and line[-1] == "–"
    assert len(line) == len(HEAD)
    assert validation_rows([cell, {**cell, "fusion": None}], "ndcg@10") == [line]


def test_significance_averages_each_user_over_seeds(tmp_path):
    _, (*_, cell) = small_suite(tmp_path)
    cells = [line_of(replace(cell, seed=seed), 0.2) for seed in (1, 2)]
    add_cell(tmp_path, cells[0], users_of(0.0).assign(**{"ndcg@10:final": [0.1, 0.2, 0.31]}))
    assert significance(cells, read_users(tmp_path), "final", "LRURec") == {}  # one is missing
    add_cell(tmp_path, cells[1], users_of(0.2))
    users = read_users(tmp_path)
    (test,) = significance(cells, users, "final", "LRURec").values()
    assert test["users"] == 3
    assert test["difference"] == pytest.approx(0.1 + 0.01 / 6)
    assert test["p"] < 0.01
    assert significance(cells, users, "final", "LRURec + evidence") == {}
    table = markdown_significance({("tiny", "LlamaRec"): cells}, users)
    assert "3 users, seeds: 2." in table and "| metric | final - LRURec | p |" in table


def test_the_published_figures_fit_together():
    """LlamaRec's gains that the paper's text states, from its own table."""
    from tables import PAPER, read_published

    paper = read_published()[PAPER]
    stated = paper["stated_gains"]["over_LRURec_percent"]["ml-latest-small"]
    table = paper["table_1"]["ml-latest-small"]
    for metric, gain in stated.items():
        found = 100 * (table["LlamaRec"][metric] / table["LRURec"][metric] - 1)
        assert found == pytest.approx(gain, abs=0.02)
    groups = suite_groups(read_suite(ROOT / "benchmarks/suites/paper.yaml"), {})
    assert rows_of(groups, "test", "table_1") == []
