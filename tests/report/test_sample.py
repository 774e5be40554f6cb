"""The users that a report shows in full are as the test found them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llamarec.report.record import read_record
from recbole_llamarec.report.sample import N_RETRIEVED, N_USERS, chosen_rows


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 3))
def test_most_of_the_sample_is_retrieved(is_retrieved, seed):
    found = np.array(is_retrieved, dtype=bool)
    rows = chosen_rows(found, seed)
    assert len(rows) == min(N_USERS, len(found)) and (np.diff(rows) > 0).all()
    assert found[rows].sum() >= min(found.sum(), N_RETRIEVED)
    assert (chosen_rows(found, seed) == rows).all()


def test_sampled_users_are_as_the_table_has_them(hostile):
    record = read_record(hostile.with_suffix(".report.json"))
    users = pd.read_csv(hostile.with_suffix(".users.csv"), dtype={"user_id": str})
    table = users.set_index("user_id")
    assert {user.user for user in record.sample} == set(table.index)  # 39 users, all of them
    for user in record.sample:
        row = table.loc[user.user]
        assert (user.retriever_rank, user.final_rank) == (
            row["rank:LRURec"],
            row[f"rank:{record.final}"],
        )
        assert len(user.history) == min(5, user.history_length)
        assert user.was_ranked == (user.retriever_rank <= 8)
        targets = [candidate for candidate in user.candidates if candidate.is_target]
        assert len(targets) == user.was_ranked
        for target in targets:
            assert target.title == user.target
            assert target.retriever_rank == user.retriever_rank
            assert target.final_rank == user.final_rank
            assert record.labels["verbalizer"].index(target.label) == row["rank:LRURec"] - 1
        if user.was_ranked:
            chosen = max(user.candidates, key=lambda c: c.probabilities["verbalizer"])
            assert chosen.retriever_rank - 1 == row["first:verbalizer"]


def test_candidates_stand_in_the_final_order(hostile):
    record = read_record(hostile.with_suffix(".report.json"))
    n_moved = 0
    for user in record.sample:
        assert [c.final_rank for c in user.candidates] == list(range(1, 9))
        assert sorted(c.retriever_rank for c in user.candidates) == list(range(1, 9))
        assert not set(user.history) & {c.title for c in user.candidates}  # seen items are masked
        if user.was_ranked:
            assert sum(c.probabilities["verbalizer"] for c in user.candidates) == pytest.approx(
                1, abs=1e-4
            )
            by_place = sorted(user.candidates, key=lambda c: c.retriever_rank)
            assert [c.label for c in by_place] == list("ABCDEFGH")
            n_moved += [c.retriever_rank for c in user.candidates] != list(range(1, 9))
        else:
            assert all(c.probabilities == {} and c.label is None for c in user.candidates)
    assert n_moved
