"""The page in RecBole's form has the figures of the stored cells."""

from __future__ import annotations

import re
import statistics

import pytest
from helpers import ROOT
from recbole_page import (
    METRICS,
    SUITES,
    StoredSuite,
    main,
    page,
    parameters_table,
    statistics_table,
    with_one_target,
)
from results import read_cells, write_cells
from small_suite import line_of, small_suite
from tables import Row

BENCHMARKS = ROOT / "benchmarks"
PAGE = BENCHMARKS / "results" / "RECBOLE.md"


@pytest.fixture(scope="module")
def stored() -> list[StoredSuite]:
    return [
        StoredSuite.read(BENCHMARKS / "suites" / f"{name}.yaml", BENCHMARKS / "results" / name)
        for name in SUITES
    ]


def test_the_stored_page_is_what_the_cells_give(stored):
    assert PAGE.read_text(encoding="utf-8") == page(stored)


def test_figures_are_means_over_the_cells_themselves():
    """Read from the lines, past the tables' own code."""
    text = PAGE.read_text(encoding="utf-8").split("## Suite paper")[1].split("## Suite ranker")[0]
    of_dataset = text.split("### amazon-beauty")[0]
    found = re.search(r"^\| LRURec \| (0.*) \|$", of_dataset, re.M)
    lines = [
        line
        for line in read_cells(BENCHMARKS / "results" / "paper").values()
        if (line["dataset"], line["model"]) == ("ml-latest-small", "LRURec")
        and line["settings"]["weight_decay"] == 0.01
        and line["settings"]["dropout_prob"] == 0.5
    ]
    assert found and len(lines) == 3
    for shown, metric in zip(found[1].split(" | "), ("recall", "mrr", "ndcg"), strict=False):
        values = [line["test"]["final"][f"{metric}@10"] for line in lines]
        assert float(shown.split(" ± ")[0]) == pytest.approx(statistics.mean(values), abs=6e-5)


def test_a_row_has_what_follows_from_its_recall_and_keeps_what_was_measured():
    def row(**ours: list[float]) -> Row:
        return Row("d", "m", {name.replace("_", "@"): own for name, own in ours.items()}, {}, {})

    given = with_one_target(row(recall_10=[0.2, 0.4]))
    assert given.ours["hit@10"] == [0.2, 0.4] and given.text("precision@10").startswith("0.0300 ±")
    measured = with_one_target(row(recall_10=[0.2], hit_10=[0.3], precision_10=[0.5]))
    assert (measured.text("hit@10"), measured.text("precision@10")) == ("0.3000", "0.5000")


def test_a_page_follows_its_cells(tmp_path):
    suite, cells = small_suite(tmp_path)
    stages = {"final": {"recall@10": 0.1, "mrr@10": 0.2, "ndcg@10": 0.3}}
    lines = {cell.id: line_of(cell, 0.1, test=stages, retrieved=stages) for cell in cells}
    write_cells(tmp_path, lines)
    own = StoredSuite(suite, suite.finished(read_cells(tmp_path)))
    assert "| tiny | 3 | 9 | 12 | 55.56% |" in statistics_table([own])
    table = parameters_table(suite, "tiny", own.groups)
    assert "dropout_prob, embedding_dropout_prob in [0.1, 0.5] |" in table
    assert "epochs=3, train_batch_size=16, dropout_prob=0.1" in table  # of the best
    assert "MAX_ITEM_LIST_LENGTH=20" in table and "topk" not in table


def test_the_command_writes_the_page_and_names_a_damaged_line(tmp_path, capsys):
    for name in SUITES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cells.jsonl").write_bytes(
            (BENCHMARKS / "results" / name / "cells.jsonl").read_bytes()
        )
    main([f"--results={tmp_path}"])
    text = (tmp_path / "RECBOLE.md").read_text(encoding="utf-8")
    assert text == PAGE.read_text(encoding="utf-8") and all(own in text for own in METRICS.values())
    assert capsys.readouterr().out.strip() == str(tmp_path / "RECBOLE.md")
    (tmp_path / "paper" / "cells.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match="cells.jsonl, line 1"):
        main([f"--results={tmp_path}"])
