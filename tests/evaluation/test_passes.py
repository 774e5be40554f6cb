"""What a pass records of ranks, candidates and opinions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_llamarec.evaluation.passes import EvaluationPass, PassRecords
from recbole_llamarec.scoring.fusion import Stage

ALONE = Stage("a", {"a": 1.0}, with_retriever=False)
RETRIEVER = Stage("LRURec", {})


@pytest.fixture
def records() -> PassRecords:
    """Two batches; of the first, rows 0 and 2 are scored, of the second none, of the third all."""
    one = EvaluationPass(rerank=True)
    one.note(*map(torch.tensor, ([1, 2, 3], [11, 12, 13], [2, 50, 1], [7, 4, 9])))
    opinions = {"a": torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])}
    items = torch.tensor([[10, 11, 12], [13, 14, 15]])
    retriever = torch.tensor([[-0.5, -1.5, -2.0], [-0.5, -1.5, -2.0]])
    best_first = torch.tensor([[2, 1, 0], [0, 1, 2]])
    open_ones = torch.zeros(2, 3, dtype=torch.bool)
    one.note_ranked(torch.tensor([0, 2]), items, retriever, opinions, best_first, open_ones)
    one.note(*map(torch.tensor, ([4], [14], [9], [5])))
    nothing = torch.empty(0, 3)
    no_rows = torch.empty(0, dtype=torch.int64)
    empty = {"a": nothing}
    one.note_ranked(no_rows, nothing.long(), nothing, empty, nothing.long(), nothing.bool())
    one.note(*map(torch.tensor, ([5], [77], [40], [6])))
    alone = {"a": opinions["a"][:1]}
    one.note_ranked(
        torch.tensor([0]), items[:1], retriever[:1], alone, best_first[:1], open_ones[:1]
    )
    return one.records(3, ["a"])


def test_rows_stand_in_the_order_of_the_pass_whether_they_were_scored_or_not(records):
    assert records.rows["users"].tolist() == [1, 2, 3, 4, 5]
    assert records.rows["ranks"].tolist() == [2, 50, 1, 9, 40]
    assert records.rows["lengths"].tolist() == [7, 4, 9, 5, 6]
    assert records.rows["is_ranked"].tolist() == [True, False, True, False, True]
    assert records.ranked["items"].shape == (3, 3)
    assert set(records.ranked) == {"items", "retriever", "best_first", "masked", "score:a"}
    assert list(records.opinions) == ["a"]


def test_the_targets_column_is_k_where_it_is_no_candidate(records):
    assert records.target_columns.tolist() == [1, 0, 3]


def test_ranks_by_a_stage_move_retrieved_targets_alone(records):
    assert records.ranks_by(RETRIEVER).tolist() == [2, 50, 1, 9, 40]
    assert records.ranks_by(ALONE).tolist() == [2, 50, 1, 9, 40]  # the middle of three stays
    reversed_order = Stage("b", {"a": -1.0}, with_retriever=False)
    assert records.ranks_by(reversed_order).tolist() == [2, 50, 1, 9, 40]
    records.ranked["score:a"][0] = [0.0, 9.0, 2.0]
    assert records.ranks_by(ALONE).tolist() == [1, 50, 1, 9, 40]
    records.ranked["score:a"][1] = [-5.0, 0.0, 0.0]
    assert records.ranks_by(ALONE).tolist() == [1, 50, 3, 9, 40]
    assert records.rows["ranks"].tolist() == [2, 50, 1, 9, 40]  # as they were


def test_masked_candidates_stand_behind_all_others_in_every_stage(records):
    records.ranked["masked"][0, 2] = True  # which has the best score
    records.ranked["masked"][1, 0] = True  # the target of the third row
    records.rows["ranks"][2] = 30
    assert records.target_columns.tolist() == [1, 3, 3]
    assert records.ranks_by(ALONE).tolist() == [1, 50, 30, 9, 40]


def test_a_pass_without_any_scored_row_still_has_its_columns():
    one = EvaluationPass(rerank=False)
    one.note(*map(torch.tensor, ([1], [11], [2], [3])))
    records = one.records(4, ["a", "b"])
    assert records.opinions["b"].shape == (0, 4) and records.opinions["b"].dtype == np.float32
    assert records.target_columns.tolist() == []
    assert records.ranks_by(Stage("a", {"a": 1.0, "b": 2.0})).tolist() == [2]


def test_the_records_are_copies_of_what_recbole_may_write_into():
    one = EvaluationPass(rerank=True)
    users = torch.tensor([1, 2])
    one.note(users, users, users, users)
    users += 5
    assert one.records(2).rows["users"].tolist() == [1, 2]


def test_of_one_process_the_records_of_all_are_its_own(records):
    both = records.of_all_processes(5)
    for name, values in {**records.rows, **records.ranked}.items():
        assert np.array_equal({**both.rows, **both.ranked}[name], values)
