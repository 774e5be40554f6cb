"""Which scorers take part in a run, in which order, and how one from outside is registered."""

from __future__ import annotations

import pytest
import torch
from runs import batch_of, run_of, untrained

from recbole_llamarec.scoring import scorer as scorer_module
from recbole_llamarec.scoring.scorer import Rows, build_scorers, register_scorer, scores_of_open

AUTO = {"rerank_fusion": "auto", "evidence_items": 2}


class Constant:
    """Has the same opinion on everything."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, []

    def scores(self, rows, items):
        self.asked.append((rows, items))
        return torch.zeros(items.shape)

    def state(self):
        return {"asked": len(self.asked)}

    def load(self, state):
        self.loaded = state


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """An empty registry, which is forgotten after the test."""
    monkeypatch.setattr(scorer_module, "_registered", {})


def test_evidence_comes_first_and_the_language_model_last(tiny_run):
    for name in ("zeros", "others"):
        register_scorer(name, lambda parts, name=name: Constant(name))
    model = untrained(tiny_run, **AUTO, scorers=["zeros", "others"])
    assert list(model.scorers) == ["evidence", "zeros", "others", "verbalizer"]
    assert model.scorer_names == list(model.scorers)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"ranking_method": "none"}, []),
        ({"ranking_method": "likelihood"}, ["likelihood"]),
        (AUTO | {"ranking_method": "none"}, ["evidence"]),
    ],
)
def test_the_keys_say_which_scorers_a_run_has(tiny_run, settings, names):
    assert list(untrained(tiny_run, **settings).scorers) == names


def test_a_scorer_is_built_from_the_parts_of_the_run(tiny_run):
    seen = []
    register_scorer("zeros", lambda parts: seen.append(parts) or Constant("zeros"))
    run = run_of(tiny_run, rerank_fusion="auto", scorers=["zeros"], seed=7)
    (parts,) = seen
    assert parts.settings is run.model.settings and parts.dataset is run.train.dataset
    assert parts.item_texts is run.model.item_texts
    assert (parts.n_items, parts.seed) == (run.model.n_items, 7)
    assert [own.name for own in build_scorers(parts)] == ["zeros", "verbalizer"]


def test_a_name_that_is_not_registered_is_named_with_those_that_are(tiny_run):
    register_scorer("zeros", lambda parts: Constant("zeros"))
    with pytest.raises(ValueError, match=r"scorers: 'zero' is not registered.*\['zeros'\]"):
        untrained(tiny_run, rerank_fusion="auto", scorers=["zero"])


@pytest.mark.parametrize("name", ["zeros", "evidence", "verbalizer"])
def test_a_name_that_is_taken_is_refused(name):
    register_scorer("zeros", lambda parts: Constant("zeros"))
    with pytest.raises(ValueError, match=f"There is a scorer '{name}' already"):
        register_scorer(name, lambda parts: Constant(name))


def test_a_scorer_sees_histories_and_users_but_no_target(tiny_run):
    scorer = Constant("zeros")
    register_scorer("zeros", lambda parts: scorer)
    run = run_of(tiny_run, rerank_fusion="auto", scorers=["zeros"], ranking_method="none")
    interaction, targets = batch_of(run.test)
    with run.model.evaluating(rerank=True, all_scorers=True):
        run.model.eval().full_sort_predict(interaction)
    ((rows, items),) = scorer.asked
    assert torch.equal(rows.users, interaction["user_id"])
    lengths = interaction["item_length"].tolist()
    histories = interaction["item_id_list"].tolist()
    assert rows.histories == [row[:n] for row, n in zip(histories, lengths, strict=True)]
    assert items.shape == (len(targets), 8)
    assert set(vars(rows)) == {"histories", "users"}


def test_a_scorers_state_goes_through_the_checkpoint(tiny_run):
    first, second = Constant("zeros"), Constant("zeros")
    first.asked = [1, 2, 3]
    waiting = [first, second]
    register_scorer("zeros", lambda parts: waiting.pop(0))
    settings = tiny_run | {"rerank_fusion": "auto", "scorers": ["zeros"], "ranking_method": "none"}
    kept = untrained(settings).other_parameter()
    untrained(settings).load_other_parameter(kept)
    assert second.loaded == {"asked": 3}


def test_a_scorer_that_has_another_name_than_it_was_registered_under_is_refused(tiny_run):
    register_scorer("zeros", lambda parts: Constant("ones"))
    with pytest.raises(ValueError, match="scorers: 'zeros' was registered .* name is 'ones'"):
        untrained(tiny_run, rerank_fusion="auto", scorers=["zeros"])


def test_a_scorer_with_the_name_of_the_retriever_is_refused(tiny_run):
    """Two rows of the table would have it."""
    register_scorer("LRURec", lambda parts: Constant("LRURec"))
    with pytest.raises(ValueError, match="'LRURec' is the name of two"):
        untrained(tiny_run, rerank_fusion="auto", scorers=["LRURec"])


class Recorded:
    """A scorer that says what it was asked."""

    name = "recorded"

    def __init__(self) -> None:
        self.asked: list[tuple[list[list[int]], list[int], list[list[int]]]] = []

    def scores(self, rows: Rows, items: torch.Tensor) -> torch.Tensor:
        self.asked.append((list(rows.histories), rows.users.tolist(), items.tolist()))
        return -items.float()


def test_a_scorer_sees_no_candidates_that_take_no_part():
    items = torch.tensor([[5, 6, 7], [8, 9, 1], [2, 3, 4], [7, 8, 9], [1, 2, 3]])
    masked = torch.arange(3) >= torch.tensor([2, 3, 2, 1, 0]).unsqueeze(1)
    scorer, rows = Recorded(), Rows([[1], [2], [3], [4], [5]], torch.arange(5))
    scores = scores_of_open(scorer, rows, items, masked)
    assert scorer.asked == [
        ([[1], [3]], [0, 2], [[5, 6], [2, 3]]),
        ([[2]], [1], [[8, 9, 1]]),
    ]
    assert scores.tolist() == [[-5, -6, -6], [-8, -9, -1], [-2, -3, -3], [0, 0, 0], [0, 0, 0]]


def test_without_rows_no_scorer_is_asked():
    nothing = torch.empty(0, 4, dtype=torch.int64)
    scorer, rows = Recorded(), Rows([], torch.empty(0, dtype=torch.int64))
    assert scores_of_open(scorer, rows, nothing, nothing.bool()).shape == (0, 4)
    assert scorer.asked == []
