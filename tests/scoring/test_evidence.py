"""Evidence: followers of items, against counts by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import untrained

from recbole_llamarec.scoring.evidence import PRIOR_COUNT, Evidence
from recbole_llamarec.scoring.scorer import Rows

LEAST = 360360  # a multiple of every step that a history of 14 items can have
SEQUENCES = [np.array([1, 2, 3]), np.array([1, 3, 4]), np.array([5, 1, 3])]


def rows_of(histories) -> Rows:
    return Rows(histories, torch.zeros(len(histories), dtype=torch.int64))


def test_followers_count_by_their_distance():
    evidence = Evidence(SEQUENCES, 7, n_recent=2, window=5)
    # behind item 1: item 3 counts 1/2 + 1 + 1, item 2 counts 1, item 4 counts 1/2
    assert evidence.counts(1, np.arange(1, 7)).tolist() == [0, 1, 2.5, 0.5, 0, 0]
    assert evidence.counts(6, np.arange(1, 7)).tolist() == [0] * 6
    assert evidence.counts(1, np.array([], dtype=int)).tolist() == []


def test_the_window_bounds_the_distance():
    evidence = Evidence(SEQUENCES, 7, n_recent=2, window=1)
    assert evidence.counts(1, np.arange(1, 7)).tolist() == [0, 1, 2, 0, 0, 0]


def test_scores_are_shares_smoothed_by_popularity():
    evidence = Evidence(SEQUENCES, 7, n_recent=2, window=5)
    pool = np.array([3, 2, 6])  # nobody has chosen the last one
    popularity = np.array([4, 2, 1]) / (9 + 7)
    of_one = (np.array([2.5, 1, 0]) + PRIOR_COUNT * popularity) / (4 + PRIOR_COUNT)
    of_three = (np.array([0, 0, 0]) + PRIOR_COUNT * popularity) / (1 + PRIOR_COUNT)
    rows = rows_of([[5, 1, 3], [1], [6], []])
    scores = evidence.scores(rows, torch.from_numpy(np.tile(pool, (4, 1))))
    assert scores.dtype == torch.float32
    expected = [(of_one + of_three) / 2, of_one, popularity, popularity]
    assert scores.exp().numpy() == pytest.approx(np.array(expected), rel=1e-6)


def test_a_choice_that_is_not_to_count_is_taken_out():
    pool = np.array([3, 2, 6])
    evidence = Evidence(SEQUENCES, 7, n_recent=2, window=5)
    popularity = np.array([4, 2, 1]) / (9 + 7)
    # in [5, 1, 3] item 3 stands 1 step behind item 1 and 2 behind item 5
    of_one = (np.array([2.5 - 1, 1, 0]) + PRIOR_COUNT * popularity) / (4 - 1 + PRIOR_COUNT)
    of_five = (np.array([0.5 - 0.5, 0, 0]) + PRIOR_COUNT * popularity) / (1 + PRIOR_COUNT)
    left = evidence.shares([4, 5, 1], pool, uncounted=3)
    assert left == pytest.approx((of_one + of_five) / 2)
    near = Evidence(SEQUENCES, 7, n_recent=2, window=1)
    of_one = (np.array([2 - 1, 1, 0]) + PRIOR_COUNT * popularity) / (3 - 1 + PRIOR_COUNT)
    of_five = PRIOR_COUNT * popularity / (1 + PRIOR_COUNT)  # item 3 was not counted behind it
    assert near.shares([5, 1], pool, uncounted=3) == pytest.approx((of_one + of_five) / 2)


def test_no_rows_and_no_sequences_give_no_scores_and_equal_ones():
    evidence = Evidence(SEQUENCES, 7, n_recent=2, window=5)
    assert evidence.scores(rows_of([]), torch.empty(0, 4, dtype=torch.int64)).shape == (0, 4)
    nothing = Evidence([], 7, n_recent=2, window=5)
    assert len(set(nothing.scores(rows_of([[1]]), torch.tensor([[1, 2, 3]]))[0].tolist())) == 1


@pytest.mark.parametrize("window", [2, 5, 99])
def test_counts_equal_brute_force(window):
    generator = np.random.default_rng(3)
    sequences = [
        generator.integers(1, 20, generator.integers(1, 15)) for _ in range(12)
    ]  # items repeat
    evidence = Evidence(sequences, 20, n_recent=1, window=window)
    for item in range(1, 20):
        counts = np.zeros(20, dtype=np.int64)
        for sequence in sequences:
            for place in np.flatnonzero(sequence == item):
                for step, follower in enumerate(sequence[place + 1 :][:window], start=1):
                    counts[follower] += LEAST // step  # whole numbers
        assert evidence.counts(item, np.arange(20)) == pytest.approx(counts / LEAST, abs=1e-8)


def test_a_checkpoint_keeps_nothing_of_it():
    evidence = Evidence(SEQUENCES, 7, n_recent=2, window=5)
    assert evidence.state() == {} and evidence.load({}) is None


def test_a_run_counts_training_items_alone(tiny_run):
    """Against counts from the atomic file, whose last two items of each user are held out."""
    settings = tiny_run | {"rerank_fusion": "auto", "ranking_method": "none"}
    model = untrained(settings, evidence_items=3, evidence_window=2)
    (evidence,) = model.scorers.values()
    assert (evidence.name, evidence.n_recent) == ("evidence", 3)
    file = f"{tiny_run['data_path']}/tiny/tiny.inter"
    chosen: dict[str, list[str]] = {}
    with open(file) as lines:
        for user, item, _ in (line.split("\t") for line in list(lines)[1:]):
            chosen.setdefault(user, []).append(item)
    training = [items[:-2] for items in chosen.values() if len(items) > 3]
    tokens = np.array([f"i{n}" for n in range(60)])
    for text, item_id in zip(tokens, model_ids(model, tokens), strict=True):
        counts = dict.fromkeys(tokens, 0.0)
        for items in training:
            if text in items:
                for step, follower in enumerate(items[items.index(text) + 1 :][:2], start=1):
                    counts[follower] += 1 / step
        ids = model_ids(model, tokens)
        assert evidence.counts(item_id, ids) == pytest.approx(list(counts.values()))


def model_ids(model, tokens) -> np.ndarray:
    """Internal item ids of tokens, by the items' titles, which end in the token's number."""
    by_number = {text.rsplit(" ", 1)[-1]: i for i, text in enumerate(model.item_texts) if i}
    return np.array([by_number[token[1:]] for token in tokens])
