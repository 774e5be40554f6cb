"""10,000 values of all keys: each is taken, or refused by an error that names its key."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import fuzzed_settings
from fuzzed_values import Pair, check, keys, pairs

from recbole_llamarec.settings import all_keys

N_RUNS = 25


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_llama):
    return fuzzed_settings.base_values(tmp_path_factory.mktemp("base"), tiny_llama)


def test_every_key_is_fuzzed():
    tried = {(pair.key, pair.is_nested) for pair in pairs(10_000, seed=1)}
    assert tried == set(keys())
    assert {(stated.name, False) for stated in all_keys()} <= tried
    assert {("epochs", False), ("epochs", True), ("seed", False), ("radius_max", True)} <= tried


def test_each_value_is_taken_or_refused_by_its_key(base):
    outcomes = [(pair, check(base, pair)) for pair in pairs(10_000, seed=1)]
    wrong = [(p.full_key, o) for p, o in outcomes if o not in ("accepted", "refused")]
    assert wrong == []
    counts = Counter(outcome for _, outcome in outcomes)
    assert counts["accepted"] > 2000 and counts["refused"] > 5000


@pytest.mark.parametrize(
    ("pair", "outcome"),
    [
        (Pair("epochs", 1.5), "refused"),
        (Pair("epochs", 0), "accepted"),
        (Pair("epochs", 1.5, is_nested=True), "refused"),
        (Pair("clip_grad_norm", 5), "refused"),
        (Pair("clip_grad_norm", {"max_norm": 5}), "accepted"),
        (Pair("train_positions", 2**63), "refused"),
    ],
)
def test_known_values_have_the_right_outcome(base, pair, outcome):
    assert check(base, pair) == outcome


def test_values_that_were_taken_do_not_fail_in_a_run(base, tiny_llama, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = fuzzed_settings.accepted(base, N_RUNS, seed=1)
    outcomes = {(p.full_key, repr(p.value)): fuzzed_settings.run(tiny_llama, p) for p in chosen}
    assert len(outcomes) == N_RUNS
    assert {key: o for key, o in outcomes.items() if o not in ("ran", "refused")} == {}
    assert Counter(outcomes.values())["ran"] > N_RUNS / 2


def test_what_fails_in_training_would_be_found(tiny_llama):
    """No value: RecBole's own check of the loss ends the run, after training has begun."""
    from recbole.trainer import Trainer

    def fail(*_):
        raise ValueError("learner: no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_check_nan", fail)
        outcome = fuzzed_settings.run(tiny_llama, Pair("learner", "adam"))
    assert outcome == "after training began, ValueError: learner: no"
