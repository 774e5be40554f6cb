"""The language model as a scorer: loaded when needed, kept as an adapter, logged batch by batch."""

from __future__ import annotations

import pytest
import torch
from runs import language_model_of, pools_of, randomise_adapter

from recbole_llamarec.ranking.model.adapter import adapter_state, save_adapter
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.scoring.scorer import Rows


@pytest.fixture
def batch() -> tuple[Rows, torch.Tensor]:
    histories, pools, _ = pools_of(4)
    return Rows(histories, torch.zeros(4, dtype=torch.int64)), torch.tensor(pools)


class Log:
    """Keeps batches, and gives back those that it was made with."""

    def __init__(self, kept=()):
        self.kept, self.added = list(kept), []

    def next(self):
        return self.kept.pop(0) if self.kept else None

    def add(self, scores):
        self.added.append(scores)


@pytest.mark.parametrize("method", ["verbalizer", "likelihood", "readout"])
def test_its_name_is_the_rankers_and_nothing_is_loaded_for_it(tiny_llama, method, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.scoring.language_model.load_language_model", None)
    scorer = language_model_of(tiny_llama, ranking_method=method)
    assert scorer.name == method
    assert scorer.state() == {}


def test_its_scores_are_the_rankers_log_probabilities(tiny_llama, batch):
    scorer = language_model_of(tiny_llama)
    randomise_adapter(scorer)
    rows, items = batch
    scores = scorer.scores(rows, items)
    budget = TokenBudget(2048, "llm_batch_tokens")
    expected = rank_all(scorer.ranker, rows.histories, items.tolist(), budget)
    assert torch.equal(scores, expected) and scores.dtype == torch.float32
    assert torch.allclose(scores.exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_state_gives_another_scorer_the_same_scores(tiny_llama, batch, is_loaded, tmp_path):
    """Whether or not its language model is loaded already; its own lora_r is then another."""
    scorer = language_model_of(tiny_llama)
    randomise_adapter(scorer)
    torch.save(scorer.state(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state) == {"lora", "adapter"}
    other = language_model_of(tiny_llama, lora=LoraSettings(r=4 if is_loaded else 2, dropout=0.0))
    if is_loaded:
        assert not torch.equal(other.scores(*batch), scorer.scores(*batch))
    other.load(state)
    assert other.state().keys() == state.keys()
    assert torch.equal(other.scores(*batch), scorer.scores(*batch))


def test_an_empty_state_changes_nothing(tiny_llama, batch):
    scorer = language_model_of(tiny_llama)
    randomise_adapter(scorer)
    before = scorer.scores(*batch)
    scorer.load({})
    assert torch.equal(scorer.scores(*batch), before)


def test_adapter_weights_are_copies(tiny_llama):
    scorer = language_model_of(tiny_llama)
    copies = scorer.adapter_weights()
    randomise_adapter(scorer)
    assert any(not copies[name].equal(new) for name, new in scorer.adapter_weights().items())
    scorer.load_adapter_weights(copies)
    for name, weight in adapter_state(scorer.ranker.model).items():
        assert torch.equal(weight, copies[name])


def test_the_adapter_starts_from_a_peft_directory(tiny_llama, batch, tmp_path):
    scorer = language_model_of(tiny_llama)
    randomise_adapter(scorer)
    save_adapter(scorer.ranker.model, tmp_path / "adapter")
    other = language_model_of(tiny_llama, lora_adapter=str(tmp_path / "adapter"))
    assert torch.equal(other.scores(*batch), scorer.scores(*batch))
    assert any(weight.requires_grad for weight in other.ranker.model.parameters())


def test_scored_batches_go_through_the_log_within_and_not_behind(tiny_llama, batch):
    scorer = language_model_of(tiny_llama, llm_batch_tokens=1)  # a row a batch
    rows, items = batch
    log = Log()
    with scorer.logging_batches(log, show_progress=False):
        scores = scorer.scores(rows, items)
        kept = log.added[:3]
    assert len(log.added) == 4
    with scorer.logging_batches(Log(kept), show_progress=False):
        counted, compute = [], scorer.ranker.scores
        scorer.ranker.scores = lambda encoded: counted.append(len(encoded)) or compute(encoded)
        assert torch.equal(scorer.scores(rows, items), scores)
    assert counted == [1]
    assert scorer.log is None
    scorer.scores(rows, items)
    assert len(log.added) == 4


def test_a_context_within_a_context_gives_the_log_back(tiny_llama):
    scorer = language_model_of(tiny_llama)
    log = Log()
    with scorer.logging_batches(log, show_progress=True):
        with pytest.raises(ZeroDivisionError), scorer.logging_batches(None, show_progress=False):
            raise ZeroDivisionError
        assert scorer.log is log and scorer.show_progress
