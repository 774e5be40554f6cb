"""A ranker and a scorer of another package, from registration to a whole run's tables."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import checkpoint_of
from recbole.quick_start import load_data_and_model, run_recbole
from runs import METRICS, batch_of, is_tuned, order_of

from recbole_llamarec.ranking import protocol
from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.model.head import head_logits, output_head
from recbole_llamarec.ranking.protocol import Encoded, register_ranker
from recbole_llamarec.scoring import scorer as scorer_module
from recbole_llamarec.scoring.scorer import register_scorer
from recbole_llamarec.trainer import LlamaRecTrainer


class FirstWords:
    """Ranks a candidate by the logit of its title's second word behind the last title seen."""

    losses = {"label": LabelLoss()}
    prompts, max_candidates = None, None

    def __init__(self, parts):
        self.model, self.forward = parts.model, parts.forward
        self.titles = [parts.tokenizer(text or "none")["input_ids"] for text in parts.texts]

    @classmethod
    def build(cls, parts):
        return cls(parts)

    def encode(self, history, items):
        context = self.titles[history[-1] if len(history) else 0]
        words = [self.titles[item][1:2] for item in items]
        return Encoded(context, words, len(items), 1, len(context))

    def scores(self, batch):
        contexts = [own.context for own in batch]
        places = [[[len(context) - 1]] for context in contexts]
        hidden = self.forward.hidden_at(contexts, [[[]]] * len(batch), places)  # [B, H]
        words = torch.tensor([own.continuations for own in batch]).squeeze(2)  # [B, K]
        head = output_head(self.model)
        return torch.cat(
            [head_logits(h[None], head, w) for h, w in zip(hidden, words, strict=True)]
        )


class NextNumber:
    """Prefers the items whose title's number is the next after that of the last item seen."""

    name = "next number"

    def __init__(self, parts):
        self.numbers = torch.tensor([-99, *(int(t.split()[-1]) for t in parts.item_texts[1:])])
        self.n_asked = 0

    def scores(self, rows, items):
        self.n_asked += len(items)
        last = torch.tensor([history[-1] if history else 0 for history in rows.histories])
        distances = self.numbers[items] - self.numbers[last][:, None] - 1  # [R, K]
        return -distances.abs().float()

    def state(self):
        return {"n_asked": self.n_asked}

    def load(self, state):
        self.n_asked = state["n_asked"]


@pytest.fixture
def registered(monkeypatch):
    """Both under their names, and forgotten after the test."""
    monkeypatch.setattr(protocol, "_registered", {})
    monkeypatch.setattr(scorer_module, "_registered", {})
    register_ranker("first words", FirstWords)
    register_scorer("next number", NextNumber)


SETTINGS = {
    "ranking_method": "first words",
    "scorers": ["next number"],
    "evidence_items": 2,
    "rerank_fusion": "auto",
    "rerank_candidates": 20,
}


def test_a_ranker_and_a_scorer_from_outside_take_part_in_a_whole_run(registered, tiny_run):
    """Tables have rows and columns by their names, and the final order uses them."""
    tables = []
    LlamaRecTrainer.after_test.append(lambda run: tables.append(run.report))
    try:
        result = run_recbole(config_dict=tiny_run | SETTINGS)
    finally:
        LlamaRecTrainer.after_test.pop()
    (report,) = tables
    names = [stage.name for stage in report.stages]
    assert names[:-1] == [
        *("LRURec", "LRURec + evidence", "LRURec + next number", "LRURec + first words"),
        "LRURec + evidence + next number",
        "LRURec + evidence + next number + first words",
        *("evidence", "next number", "first words"),
    ]
    assert names[-1].startswith("final: LRURec") and "next number" in names[-1]
    assert report.weights["next number"] > 0
    assert "| next number " in report.table() and "| first words " in report.table()

    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    users = pd.read_csv(checkpoint.with_suffix(".users.csv"))
    for name in names:
        assert {f"rank:{name}", *(f"{metric}:{name}" for metric in METRICS)} <= set(users)
    assert {"first:next number", "first_count:first words"} <= set(users)
    assert not users["rank:next number"].equals(users["rank:LRURec"])
    assert not users["rank:first words"].equals(users["rank:LRURec"])
    mean = users[f"ndcg@10:{names[-1]}"].mean()
    assert mean == pytest.approx(result["test_result"]["ndcg@10"], abs=1e-4)

    _, model, *_, test = load_data_and_model(str(checkpoint), tiny_run["data_path"])
    scorer = model.scorers["next number"]
    assert scorer.n_asked > 0  # its state stands in the checkpoint
    state = model.scorers["first words"].state()
    assert is_tuned(state["adapter"])
    interaction, _ = batch_of(test)
    proposed = model.eval().propose(interaction)
    rows = model.rows_of(interaction, torch.arange(len(interaction)))
    opinions = {name: own.scores(rows, proposed.items) for name, own in model.scorers.items()}
    fused = proposed.scores.double().log_softmax(1)
    for name, weight in model.fusion.weights.items():
        fused += weight * opinions[name].double()
    expected = proposed.items.gather(1, fused.argsort(dim=1, descending=True, stable=True))
    final = order_of(model.full_sort_predict(interaction))[:, :20]
    assert torch.equal(final, expected) and not torch.equal(final, proposed.items)


def test_a_ranker_from_outside_decides_alone_as_the_papers_does(registered, tiny_run):
    settings = {"ranking_method": "first words", "rerank_fusion": None, "epochs": 0}
    result = run_recbole(config_dict=tiny_run | settings)
    file = checkpoint_of(Path(tiny_run["checkpoint_dir"])).with_suffix(".users.csv")
    users = pd.read_csv(file)
    assert "rank:final: first words" in users
    assert np.array_equal(users["rank:first words"], users["rank:final: first words"])
    mean = users["recall@5:final: first words"].mean()
    assert mean == pytest.approx(result["test_result"]["recall@5"], abs=1e-4)


def test_both_are_written_in_less_than_thirty_lines_each():
    for own in (FirstWords, NextNumber):
        assert len(inspect.getsource(own).splitlines()) < 30
