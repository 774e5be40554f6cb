"""Rankers from outside the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rankers import budget_of, gradient_of, one_hot

from recbole_llamarec.ranking import protocol
from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.likelihood import Likelihood
from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.ranking.protocol import (
    Encoded,
    RankerParts,
    ranker_class_of,
    ranker_names,
    register_ranker,
)
from recbole_llamarec.ranking.rank import rank_all


class Toy:
    """Scores a candidate by its likeness to the history's last item; it shows no text."""

    losses = {"label": LabelLoss()}
    prompts, max_candidates, shares_beginnings = None, None, False

    def __init__(self, model: torch.nn.Embedding) -> None:
        self.model = model

    @classmethod
    def build(cls, parts: RankerParts) -> Toy:
        torch.manual_seed(0)
        return cls(torch.nn.Embedding(len(parts.texts), 4))

    def encode(self, history, items) -> Encoded:
        return Encoded(list(history[-1:]), [[i] for i in items], len(items), 1, 1 + len(items))

    def scores(self, batch) -> torch.Tensor:
        vectors = self.model(torch.tensor([own.tokens for own in batch]))  # [B, 1 + K, 4]
        return (vectors[:, 1:] * vectors[:, :1]).sum(-1)  # [B, K]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(protocol, "_registered", {})
    register_ranker("toy", Toy)


def test_a_ranker_from_outside_is_registered_and_ranks(registered):
    assert ranker_names() == ("verbalizer", "likelihood", "readout", "toy")
    parts = RankerParts(torch.nn.Identity(), None, None, [str(i) for i in range(9)], None)
    ranker = ranker_class_of("toy").build(parts)
    scores = rank_all(ranker, [[1, 2], [3]], [[4, 5, 6], [7, 8, 1]], budget_of(6))
    vectors = ranker.model.weight.detach()
    expected = torch.stack([vectors[[4, 5, 6]] @ vectors[2], vectors[[7, 8, 1]] @ vectors[3]])
    torch.testing.assert_close(scores, expected.log_softmax(-1))


def test_a_ranker_from_outside_is_tuned_by_the_label_loss(registered):
    ranker = ranker_class_of("toy").build(SimpleNamespace(texts=[""] * 9))
    encoded = [ranker.encode([1, 2], [4, 5, 6]), ranker.encode([3], [7, 8, 1])]
    optimizer = torch.optim.SGD(ranker.model.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        losses.append(gradient_of(ranker, encoded, one_hot([0, 2], 3), "label", 4))
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_the_built_in_rankers_have_their_names():
    assert ranker_class_of("verbalizer") is Letters
    assert ranker_class_of("likelihood") is Likelihood


def test_unknown_rankers_are_named_with_those_that_there_are(registered):
    with pytest.raises(
        ValueError, match="ranking_method: 'toys' .*verbalizer, likelihood, readout, toy"
    ):
        ranker_class_of("toys")


@pytest.mark.parametrize("name", ["verbalizer", "likelihood", "readout", "toy"])
def test_a_name_that_is_taken_is_refused(registered, name):
    with pytest.raises(ValueError, match=f"'{name}' is registered already; register Toy under"):
        register_ranker(name, Toy)


def test_none_is_reserved():
    with pytest.raises(ValueError, match="'none' means no ranker at all"):
        register_ranker("none", Toy)


def test_what_a_class_lacks_is_named():
    with pytest.raises(ValueError, match="Half cannot be registered .* lacks encode, scores, loss"):
        register_ranker("half", type("Half", (), {"build": Toy.build}))
    with pytest.raises(ValueError, match="losses is empty"):
        register_ranker("none of them", type("Lossless", (Toy,), {"losses": {}}))


def test_the_tokens_of_an_encoded_history_stand_in_a_row():
    encoded = Encoded([1, 2], [[3], [], [4, 5]], n_candidates=3, n_history=1, n_tokens=5)
    assert encoded.tokens == [1, 2, 3, 4, 5]


def test_ranking_imports_nothing_of_recbole_and_of_the_package_only_what_has_no_recbole():
    root = Path(protocol.__file__).parents[2]
    code = f"""
import sys, types
package = types.ModuleType("recbole_llamarec")
package.__path__ = [{str(root / "recbole_llamarec")!r}]
sys.modules["recbole_llamarec"] = package
import recbole_llamarec.ranking.letters, recbole_llamarec.ranking.likelihood
import recbole_llamarec.ranking.readout
import recbole_llamarec.ranking.rank, recbole_llamarec.ranking.model.loading
ours = [name for name in sys.modules if name.startswith("recbole_llamarec.")]
others = [name for name in ours if not name.startswith("recbole_llamarec.ranking")]
known = ("checksums", "command_line_values", "files", "finite", "keys", "path_rules")
assert set(others) <= {{f"recbole_llamarec.{{name}}" for name in known}}, others
assert "recbole" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
