"""The ranker alone among candidates as popular as the target."""

import re

import matched
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recbole_llamarec.integration.checkpoints import load_data_and_model
from recbole_llamarec.retrieval.candidates import catalogue_scores


def test_candidates_are_unseen_and_about_as_popular_as_the_target():
    counts = np.array([9, *range(100, 0, -1)])
    generator = np.random.default_rng(0)
    drawn = [matched.matched_pool(50, np.array([49, 52]), counts, 4, generator) for _ in range(200)]
    assert all(pool[0] == 50 and len(set(pool)) == 4 for pool in drawn)
    others = {int(item) for pool in drawn for item in pool[1:]}
    assert len(others) == 3 * matched.N_NEAREST
    assert not others & {0, 49, 50, 52}
    assert others <= set(range(38, 62))


def test_of_equally_popular_items_any_is_drawn():
    generator = np.random.default_rng(0)
    drawn = [
        matched.matched_pool(7, np.array([], dtype=int), np.ones(100), 2, generator)
        for _ in range(500)
    ]
    assert len({int(pool[1]) for pool in drawn}) > 80


def test_too_few_unseen_items_are_refused():
    with pytest.raises(ValueError, match="--candidates: 4 need 3 items .* only 2 are left"):
        matched.matched_pool(1, np.array([2, 3]), np.ones(6), 4, np.random.default_rng(0))


def test_the_first_of_several_highest_shares():
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert matched.share_first(scores).tolist() == pytest.approx([1, 0, 1 / 2, 1 / 3])
    lines = matched.table({"a": scores}, 3).splitlines()
    assert lines[-1] == "| a | 0.458 | 0.208 | 1.38 |"


def test_every_scorer_sees_the_same_candidates_and_the_target_at_any_place(trained, monkeypatch):
    _, model, _, _, valid, _ = load_data_and_model(trained.checkpoint, trained.data_path)
    rows = valid.dataset.inter_feat
    shown = []

    class Echo:
        """Scores an item by its id."""

        name = "echo"

        def scores(self, own, items):
            shown.append(items)
            return items.float()

    monkeypatch.setattr(matched, "language_model_of", lambda _: Echo())
    generator = np.random.default_rng(0)
    drawn = matched.matched_pools(model, rows, 6, generator)
    scores = matched.scores_by_name(model.eval(), rows, drawn, generator)
    pools = scores["echo"].long()  # [R, K]
    assert np.array_equal(pools, drawn)
    targets = rows[model.ITEM_ID]
    assert torch.equal(pools[:, 0], targets)
    assert torch.equal(scores["popularity"], torch.from_numpy(model.item_counts)[pools])
    expected = catalogue_scores(model.retriever.full_sort_predict, rows).gather(1, pools)
    assert_close(scores["LRURec"], expected)
    places = (torch.cat(shown) == targets[:, None]).int().argmax(1)
    assert set(places.tolist()) == set(range(6))


def test_the_command_prints_each_scorers_share(trained, capsys):
    command = ["--checkpoint", str(trained.checkpoint), "--data", str(trained.data_path)]
    matched.main([*command, "--rows", "10", "--candidates", "5"])
    printed = capsys.readouterr().out
    assert printed.startswith("tiny, 10 rows of valid\n")
    recalls = re.findall(r"^\| (\w+) \| (0\.\d{3}|1\.000) \| ", printed, flags=re.MULTILINE)
    assert [name for name, _ in recalls] == ["verbalizer", "LRURec", "popularity"]
    matched.main([*command, "--rows", "10", "--candidates", "5"])
    assert capsys.readouterr().out == printed
