"""The warm start: letters stand for the titles behind them."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_llamarec.ranking.binding import Curriculum, binding_batch


@pytest.mark.parametrize("seed", range(10))
def test_the_answer_is_the_last_item_and_stands_only_once(seed):
    histories, candidates, labels = binding_batch(80, 6, 10, np.random.default_rng(seed))
    assert len(histories) == len(candidates) == len(labels) == 6
    for history, pool, label in zip(histories, candidates, labels, strict=True):
        assert pool[label] == history[-1]
        assert len(set(pool)) == len(pool) == 10
        assert not set(history[:-1]) & set(pool)
        assert min(pool) > 0 and max(pool) < 80
    for shorter, longer in zip(histories, histories[1:], strict=False):
        assert longer[:-1] == shorter


def test_answers_stand_at_every_place():
    generator = np.random.default_rng(0)
    labels = [label for _ in range(200) for label in binding_batch(80, 6, 10, generator)[2]]
    counts = np.bincount(labels, minlength=10)
    assert counts.min() > 70  # 120 expected


def test_pools_grow_only_with_what_is_mastered():
    curriculum = Curriculum(sizes=(5, 20), mastered=0.5, window=3)
    for loss in (0.1, 0.1):
        curriculum.note(loss)
    assert curriculum.n_candidates == 5
    curriculum.note(0.1)
    assert curriculum.n_candidates == 20
    assert not curriculum.is_over
    for loss in (3.0, 0.6, 0.5):
        curriculum.note(loss)
    assert not curriculum.is_over
    curriculum.note(0.3)  # the mean of the last three is 0.47
    assert curriculum.is_over
    curriculum.note(9.0)
    assert curriculum.is_over
    assert curriculum.n_candidates == 20
