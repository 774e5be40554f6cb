"""Samples that the ranker is tuned on: rows of the training part and their candidates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import run_of

from recbole_llamarec.scoring.evidence import Evidence
from recbole_llamarec.tuning.samples import TuningSamples


def samples_of(settings: dict, seed: int = 1, **changes) -> TuningSamples:
    return samples_and_data_of(settings, seed, **changes)[0]


def samples_and_data_of(settings: dict, seed: int = 1, **changes) -> tuple[TuningSamples, Any]:
    run = run_of(settings, **changes)
    run.model.eval()
    return TuningSamples(run.model, run.train.dataset, seed), run.train.dataset


def test_every_prefix_is_a_sample_without_a_limit(tiny_run):
    samples = samples_of(tiny_run, train_max_samples=None)
    batches = samples.batches(2, 50)
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == sorted([*range(len(samples))] * 2)
    assert rows[: len(samples)] != rows[len(samples) :]  # a new order each epoch
    assert max(map(len, batches)) == 50


def test_the_limit_is_for_each_epoch(tiny_run):
    samples = samples_of(tiny_run, train_max_samples=20)
    batches = samples.batches(2, 8)
    assert [len(batch) for batch in batches] == [8, 8, 4] * 2
    assert samples.batches(0, 8) == []


def test_batches_depend_on_the_seed_alone(tiny_run):
    samples = samples_of(tiny_run)
    one, same = samples.batches(1, 8), samples.batches(1, 8)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    samples.seed = 2
    other = samples.batches(1, 8)
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sample_is_a_history_with_its_target_among_unseen_items(tiny_run):
    samples = samples_of(tiny_run)
    rows = np.arange(0, len(samples), 5)
    drawn = samples.draw(rows, step=1)
    assert drawn.targets.dtype == np.float32 and (drawn.targets.sum(1) == 1).all()
    for row, history, pool, target in zip(
        rows, drawn.histories, drawn.pools, drawn.targets, strict=True
    ):
        length = samples.lengths[row]
        assert history == samples.sequences[row, :length][-5:].tolist()  # prompt_max_history
        assert pool[target.argmax()] == samples.targets[row]
        negatives = set(pool) - {int(samples.targets[row])}
        assert len(negatives) == 7 and 0 not in negatives
        assert not negatives & set(samples.model.seen.of(samples.users[row]).tolist())


def test_candidates_depend_on_seed_step_and_row_alone(tiny_run):
    """So that they are the same whichever process draws them, and after an interruption."""
    samples = samples_of(tiny_run)
    together = samples.draw(np.array([3, 9, 30]), step=4).pools
    assert samples.draw(np.array([30, 3]), step=4).pools == [together[2], together[0]]
    assert samples.draw(np.array([3, 9, 30]), step=5).pools != together
    samples.seed = 2
    assert samples.draw(np.array([3, 9, 30]), step=4).pools != together


def test_the_first_steps_ask_for_an_item_that_the_history_shows(tiny_run):
    samples = samples_of(tiny_run, train_binding_steps=4, train_pool=4)
    rows = np.arange(len(samples))
    shares = []
    for step in range(1, 6):
        drawn = samples.draw(rows, step)
        assert drawn.targets.shape == (len(rows), 4)
        asked = [pool[t.argmax()] for pool, t in zip(drawn.pools, drawn.targets, strict=True)]
        copied = [item in own for item, own in zip(asked, drawn.histories, strict=True)]
        chosen = [bool(item == target) for item, target in zip(asked, samples.targets, strict=True)]
        assert all(a or b for a, b in zip(copied, chosen, strict=True))
        for row, item, pool in zip(rows, asked, drawn.pools, strict=True):
            negatives = set(pool) - {item}
            seen = set(samples.model.seen.of(samples.users[row]).tolist())
            assert len(negatives) == 3 and not negatives & seen
        shares.append(np.mean(np.array(copied) & ~np.array(chosen)))
        assert len(set(asked)) > 10
    assert shares[0] == 1 and shares[4] == 0
    assert shares[1:4] == pytest.approx([0.75, 0.5, 0.25], abs=0.15)
    plain = samples_of(tiny_run, train_pool=4)
    assert samples.draw(rows, 5).pools == plain.draw(rows, 5).pools
    assert plain.draw(rows, 1).pools != samples.draw(rows, 1).pools


def test_popular_candidates_are_drawn_by_their_counts(tiny_run):
    samples = samples_of(tiny_run, train_candidates="popular", train_pool=2)
    samples.model.item_counts = np.arange(samples.model.n_items) * 50
    rows = np.arange(len(samples))
    drawn = np.concatenate([samples.draw(rows, step).pools for step in range(1, 6)])
    negatives = drawn[drawn != np.tile(samples.targets, 5)[:, None]]
    counts = np.bincount(negatives, minlength=samples.model.n_items)
    assert counts[0] == 0
    assert counts[41:].sum() > 1.5 * counts[1:31].sum()  # their counts are as 3.2 to 1


def test_a_loss_that_reads_no_candidates_gets_the_target_alone(tiny_run):
    samples = samples_of(tiny_run)
    rows = np.array([3, 9])
    drawn = samples.draw(rows, step=1, with_candidates=False)
    assert drawn.pools == [[int(target)] for target in samples.targets[rows]]
    assert drawn.targets.tolist() == [[1.0], [1.0]]
    assert drawn.histories == samples.draw(rows, step=1).histories


def test_hard_candidates_are_the_retrievers_first_that_are_unseen(tiny_run):
    samples = samples_of(tiny_run, train_candidates="retriever", train_candidates_from=9)
    rows = np.arange(0, len(samples), 5)
    drawn = samples.draw(rows, step=1)
    model = samples.model
    users = samples.inter[rows][model.USER_ID]
    order = model.propose(samples.inter[rows], model.seen, users).order.numpy()
    for row, ranked, pool, target in zip(rows, order, drawn.pools, drawn.targets, strict=True):
        seen = set(model.seen.of(int(samples.users[row])).tolist())
        assert pool[target.argmax()] == samples.targets[row]
        negatives = set(pool) - {int(samples.targets[row])}
        assert len(negatives) == 7 and not negatives & seen
        assert negatives <= set(ranked[:10].tolist())


def test_hard_candidates_of_a_catalogue_that_is_smaller_than_their_depth(tiny_run):
    samples = samples_of(tiny_run, train_candidates="retriever", train_candidates_from=100)
    pools = samples.draw(np.arange(100), step=1).pools
    drawn = {item for pool in pools for item in pool}
    assert 0 not in drawn and len(drawn) > 50  # 60 items


def test_retrieved_candidates_are_those_of_a_test_and_evidence_teaches_them(tiny_run):
    changes = {"train_candidates": "retrieved", "evidence_window": 3}
    samples, dataset = samples_and_data_of(tiny_run, train_evidence=0.7, **changes)
    rows = np.arange(0, len(samples), 3)
    drawn = samples.draw(rows, step=1)
    model, n_found = samples.model, 0
    evidence = Evidence.of(dataset, 5, 3)
    scores = model.retriever.full_sort_predict(samples.inter[rows])
    for row, own, pool, targets in zip(rows, scores, drawn.pools, drawn.targets, strict=True):
        target = int(samples.targets[row])
        others = set(model.seen.of(int(samples.users[row])).tolist()) - {target}
        order = [item for item in own.argsort(descending=True).tolist() if item]
        assert set(pool) == set([item for item in order if item not in others][:8])
        history = samples.sequences[row, : samples.lengths[row]].tolist()
        shares = evidence.shares(history, np.array(pool), uncounted=target)
        expected = shares / shares.sum()
        if target in pool:
            n_found += 1
            expected = 0.7 * expected + 0.3 * (np.array(pool) == target)
        assert targets == pytest.approx(expected, rel=1e-5)
    assert 0 < n_found < len(rows)
    assert drawn.pools != samples.draw(rows, step=2).pools  # another order


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train_pool": 8}, "train_pool"),
        ({}, "rerank_candidates"),
        ({"train_pool": 8, "train_candidates": "retriever"}, "train_pool"),
    ],
)
def test_a_pool_that_cannot_be_filled_names_the_key_that_sets_its_size(tiny_run, changes, key):
    samples = samples_of(tiny_run, **changes)
    samples.n_candidates = 61  # beyond what the settings allow with this catalogue
    with pytest.raises(ValueError, match=f"^{key}: 61 candidates need 60 "):
        samples.draw(np.arange(20), step=1)


@pytest.mark.parametrize("positions", [1, 4])
def test_positions_of_a_block_are_samples_together_and_share_their_beginning(tiny_run, positions):
    samples = samples_of(tiny_run, train_positions=positions, train_max_samples=None)
    (batch,) = samples.batches(1, len(samples))
    blocks = samples.blocks[batch]
    assert (np.diff(np.flatnonzero(np.diff(blocks))) <= positions).all()
    assert len(np.unique(blocks)) == 1 + np.count_nonzero(np.diff(blocks))  # none comes twice
    histories = samples.draw(batch, step=1, with_candidates=False).histories
    together = [i for i in range(len(batch) - 1) if blocks[i] == blocks[i + 1]]
    assert len(together) == len(batch) - len(np.unique(blocks))
    for i in together:
        assert histories[i + 1] == [*histories[i], int(samples.targets[batch[i]])]
    assert max(map(len, histories)) <= 5  # prompt_max_history


def test_blocks_hold_consecutive_choices_of_one_user_where_users_are_interleaved(tiny_run):
    eval_args = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": None, "order": "TO", "mode": "full"}
    samples = samples_of(tiny_run, eval_args=eval_args, train_positions=3)
    shuffled = samples.inter[np.random.default_rng(0).permutation(len(samples))]
    again = TuningSamples(samples.model, SimpleNamespace(inter_feat=shuffled), 1)
    for own in (samples, again):
        n_rows = np.bincount(own.blocks)
        assert n_rows.max() == 3 and len(n_rows) < 0.6 * len(own)
        for block in np.unique(own.blocks):
            rows = np.flatnonzero(own.blocks == block)
            rows = rows[np.argsort(-own.later[rows])]  # the earliest first
            assert own.later[rows].tolist() == list(range(len(rows)))[::-1]
            assert len(set(own.users[rows].tolist())) == 1
            for row, following in zip(rows, rows[1:], strict=False):
                history = own.sequences[following, : own.lengths[following]].tolist()
                assert history == [
                    *own.sequences[row, : own.lengths[row]].tolist(),
                    int(own.targets[row]),
                ]
