"""Candidates from a file in the place of a retriever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checkpoint_of
from recbole.config import Config
from recbole.quick_start import load_data_and_model, run_recbole
from runs import batch_of, order_of, run_of

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.scoring.scorer import Rows, scores_of_open

USERS = [str(user) for user in range(2, 41)]  # user 1 has no evaluation row


def write(file: Path, rows: list[tuple[str, str, float]]) -> str:
    lines = [f"{user} Q0 {item} 1 {score} other" for user, item, score in rows]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.fixture
def settings(tiny_run) -> dict:
    """Of runs that rank by evidence alone, without a language model."""
    del tiny_run["retriever_config"]
    changes = {"retriever": "file", "ranking_method": "none", "metric_decimal_place": 10}
    return tiny_run | changes | {"rerank_fusion": "auto"}


def lists_of(n_users: int, seed: int) -> list[tuple[str, str, float]]:
    """Up to thirty candidates of each user, of some users none."""
    generator = np.random.default_rng(seed)
    return [
        (user, f"i{item}", float(score))
        for user in USERS[:n_users]
        for item, score in zip(
            generator.permutation(60)[: generator.integers(0, 31)],
            generator.normal(0, 2, 30),
            strict=False,
        )
    ]


def test_each_part_has_its_own_candidates_and_everything_else_is_masked(settings, workdir):
    files = {"valid": lists_of(39, 0), "test": lists_of(39, 1)}
    paths = {part: write(workdir / f"{part}.run", rows) for part, rows in files.items()}
    run = run_of(settings, retriever_file=paths, rerank_mask_seen=False)
    model = run.model.eval()
    for part, loader in (("valid", run.valid), ("test", run.test)):
        interaction, targets = batch_of(loader)
        candidates = model.propose(interaction)
        users = loader.dataset.id2token("user_id", interaction["user_id"].numpy())
        for row, user in enumerate(users):
            own = {item: score for who, item, score in files[part] if who == user}
            best_first = sorted(own, key=own.__getitem__, reverse=True)
            n_shown = min(len(own), 8)
            assert candidates.n_open[row] == len(own)
            tokens = loader.dataset.id2token("item_id", candidates.order[row].numpy()).tolist()
            assert tokens[: len(own)] == best_first
            assert candidates.masked[row].tolist() == [place >= n_shown for place in range(8)]
            scores = torch.tensor([own[item] for item in best_first[:n_shown]])
            expected = scores.double().log_softmax(0)
            given = candidates.scores[row, :n_shown].double()
            assert torch.allclose(given, expected, atol=1e-6)
            is_found = loader.dataset.id2token("item_id", int(targets[row])) in own
            place = tokens.index(loader.dataset.id2token("item_id", int(targets[row])))
            assert is_found or place == len(tokens) - 2  # in front of the padding item alone
        assert candidates.scores.isfinite().all()


def test_seen_items_are_no_candidates_where_they_are_masked(settings, workdir):
    rows = [(user, f"i{item}", 60.0 - item) for user in USERS for item in range(60)]
    run = run_of(settings, retriever_file=write(workdir / "all.run", rows))
    interaction, _ = batch_of(run.test)
    candidates = run.model.propose(interaction)
    for row in range(len(interaction)):
        history = interaction["item_id_list"][row]
        seen = set(history[history != 0].tolist())
        assert candidates.n_open[row] == 60 - len(seen)
        assert seen.isdisjoint(candidates.items[row].tolist())


def test_the_metrics_are_those_of_the_lists(settings, workdir):
    """Against a computation by hand; who has no list, or a target outside, adds 0."""
    rows = lists_of(30, 2)
    run = run_of(settings, retriever_file=write(workdir / "a.run", rows), rerank_mask_seen=False)
    rows = {(user, item): score for user, item, score in rows}
    interaction, targets = batch_of(run.test)
    dataset = run.test.dataset
    reciprocal = []
    for user, target in zip(interaction["user_id"].tolist(), targets.tolist(), strict=True):
        own = {i: s for (who, i), s in rows.items() if who == dataset.id2token("user_id", user)}
        score = own.get(dataset.id2token("item_id", target))
        rank = np.inf if score is None else sum(other >= score for other in own.values())
        reciprocal.append(1 / rank if rank <= 10 else 0)
    run.trainer.fit(run.train, run.valid, saved=False)
    result = run.trainer.evaluate(run.test, load_best_model=False)
    assert result["mrr@10"] == pytest.approx(np.mean(reciprocal), abs=1e-9)
    recall = np.mean(np.array(reciprocal) > 0)
    assert recall > 0.05 and result["recall@10"] == pytest.approx(recall, abs=1e-9)


def test_what_the_data_set_lacks_is_counted_and_left_out(settings, workdir, caplog):
    rows = [("2", "i1", 1.0), ("2", "none", 2.0), ("nobody", "i1", 2.0), ("nobody", "i2", 2.0)]
    model = run_of(settings, retriever_file=write(workdir / "a.run", rows)).model
    assert len(model.retriever.items) == 2  # for validation and for test
    assert "1 rows of" in caplog.text and "no such item" in caplog.text
    assert "2 rows of" in caplog.text and "no such user" in caplog.text
    assert "39 of 40 users have no candidates" in caplog.text
    assert "valid and test rows nothing counts as found" in caplog.text


def test_a_whole_run_and_its_checkpoint_without_the_file(settings, tiny_run, workdir):
    """With the language model, whose prompts show as many candidates as there are."""
    file = Path(write(workdir / "a.run", lists_of(39, 3)))
    changes = {"ranking_method": "verbalizer", "rerank_fusion": 0.5}
    result = run_recbole(config_dict=settings | changes | {"retriever_file": str(file)})
    checkpoint = checkpoint_of(workdir / "saved")
    file.unlink()
    _, model, dataset, _, _, test = load_data_and_model(str(checkpoint), tiny_run["data_path"])
    interaction, targets = batch_of(test)
    scores = model.eval().full_sort_predict(interaction)
    ranks = 1 + (order_of(scores) == targets.unsqueeze(1)).int().argmax(1)
    recall = (ranks <= 5).double().mean().item()
    assert result["test_result"]["recall@5"] == pytest.approx(recall, abs=1e-9)
    recommender = Recommender(model, dataset)
    users = dataset.field2token_id["user_id"]
    counts = model.retriever.given_mask(interaction).sum(1)
    row = int(counts.argmax())
    user = dataset.id2token("user_id", int(interaction["user_id"][row]))
    (found,) = recommender.recommend([["i1", "i2"]], 30, [user])
    assert 0 < len(found) <= counts[row]
    assert {recommender.ids_of([one.item])[0] for one in found} <= set(
        model.retriever.given_mask(interaction)[row].nonzero().squeeze(1).tolist()
    )
    without = int((counts == 0).nonzero()[0])
    unnamed = dataset.id2token("user_id", int(interaction["user_id"][without]))
    for who in ([unnamed], None):
        with pytest.raises(ValueError, match="retriever: file .* no candidates"):
            recommender.recommend([["i1"]], users=who)
    assert [one.rank for one in recommender.rank(["i1"], ["i3", "i4"])] == [1, 2]
    assert set(users) > {user, unnamed}


class Recorded:
    """A scorer that says how many candidates it was asked about."""

    name = "recorded"

    def __init__(self) -> None:
        self.asked: list[tuple[list[list[int]], list[list[int]]]] = []

    def scores(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        self.asked.append((list(rows.histories), items.tolist()))
        return -items.float()


def test_scorers_see_no_masked_candidates():
    items = torch.tensor([[5, 6, 7], [8, 9, 1], [2, 3, 4], [7, 8, 9], [1, 2, 3]])
    n_open = torch.tensor([2, 3, 2, 1, 0])
    masked = torch.arange(3) >= n_open.unsqueeze(1)
    scorer, rows = Recorded(), Rows([[1], [2], [3], [4], [5]], torch.arange(5))
    scores = scores_of_open(scorer, rows, items, masked)
    assert scorer.asked == [([[1], [3]], [[5, 6], [2, 3]]), ([[2]], [[8, 9, 1]])]
    assert scores.tolist() == [[-5, -6, -6], [-8, -9, -1], [-2, -3, -3], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retriever_file": "none.run"}, ["retriever_file", "none.run", "no file"]),
        ({"retriever_file": {"valid": "a.run"}}, ["retriever_file", "test"]),
        ({"retriever_file": {"valid": "a.run", "test": "b.csv"}}, ["a.run", "b.csv", ".tsv"]),
        ({"retriever_config": {"epochs": 1}}, ["retriever_config", "retriever: file"]),
        ({"retriever_checkpoint": "a.pth"}, ["retriever_checkpoint", "retriever: file"]),
        ({"train_candidates": "retriever"}, ["train_candidates", "random or popular"]),
        ({"retriever": "LRURec", "retriever_file": "a.run"}, ["retriever_file", "'LRURec'"]),
    ],
)
def test_keys_that_do_not_go_together_are_refused_at_once(settings, changes, words):
    with pytest.raises(ValueError, match="LlamaRec cannot start") as error:
        Config(config_dict=settings | changes | {"rerank_candidates": 1})
    assert [word for word in [*words, "rerank_candidates: 1"] if word not in str(error.value)] == []


def test_a_training_without_the_file_is_refused(settings):
    run = run_of(settings)
    with pytest.raises(ValueError, match="retriever: file needs retriever_file"):
        run.trainer.fit(run.train, run.valid, saved=False)
