"""Candidate pools of the ranker's tuning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llamarec.tuning.pools import (
    blocks_of_positions,
    random_pool,
    retriever_pool,
)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(0, 20))
def test_random_pool(seed, n_candidates, n_seen):
    generator = np.random.default_rng(seed)
    seen = generator.choice(np.arange(1, 60), size=n_seen, replace=False)
    target = int(generator.integers(1, 60))
    candidates = random_pool(target, seen, 60, n_candidates, generator)
    (label,) = np.flatnonzero(candidates == target)
    assert candidates[label] == target
    assert len(set(candidates)) == n_candidates
    assert 0 not in candidates
    assert not set(candidates) - {target} & set(seen)


def test_pool_positions_and_negatives_are_uniform():
    generator = np.random.default_rng(0)
    pools = [random_pool(1, np.array([2, 3]), 14, 5, generator) for _ in range(4000)]
    labels = np.bincount(np.nonzero(np.array(pools) == 1)[1], minlength=5)
    assert np.abs(labels / 4000 - 0.2).max() < 0.03
    counts = np.bincount(np.concatenate(pools), minlength=14)
    assert counts[[0, 2, 3]].sum() == 0
    assert np.abs(counts[4:] / 4000 - 0.4).max() < 0.04


def test_negatives_are_drawn_by_one_more_than_their_counts():
    generator = np.random.default_rng(0)
    counts = np.array([9, 9, 9, 0, 1, 2])
    pools = [random_pool(1, np.array([2]), 6, 2, generator, counts) for _ in range(6000)]
    drawn = np.bincount(np.concatenate(pools), minlength=6)
    assert drawn[1] == 6000 and drawn[[0, 2]].sum() == 0
    assert np.abs(drawn[3:] / 6000 - np.array([1, 2, 3]) / 6).max() < 0.03


def test_too_few_unseen_items_name_the_key():
    with pytest.raises(ValueError, match="^rerank_candidates: 5 .*lower rerank_candidates"):
        random_pool(1, np.arange(1, 9), 10, 5, np.random.default_rng(0))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 20))
def test_retriever_pool(seed, n_candidates):
    generator = np.random.default_rng(seed)
    ranked = generator.permutation(np.arange(1, 60))
    target = int(generator.integers(1, 60))
    candidates = retriever_pool(target, ranked, n_candidates, 30, generator)
    (label,) = np.flatnonzero(candidates == target)
    assert candidates[label] == target
    assert len(set(candidates)) == n_candidates
    others = [item for item in ranked if item != target][:30]
    assert set(candidates) - {target} <= set(others)


def test_too_short_a_ranking_names_the_key():
    with pytest.raises(ValueError, match="train_candidates_from"):
        retriever_pool(1, np.arange(1, 5), 10, 5, np.random.default_rng(0))


def test_blocks_are_cut_from_the_end_of_each_run():
    runs = np.array([1, 1, 1, 1, 1, 2, 3, 3, 3])
    blocks, later = blocks_of_positions(runs, 3)
    assert blocks.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert later.tolist() == [1, 0, 2, 1, 0, 0, 2, 1, 0]
    blocks, later = blocks_of_positions(runs, 1)
    assert blocks.tolist() == list(range(9))
    assert later.tolist() == [0] * 9
    assert blocks_of_positions(np.empty(0, dtype=int), 2)[0].tolist() == []
