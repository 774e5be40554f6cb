"""Settings of every kind are taken and work, or are refused by an error that names their key."""

from __future__ import annotations

import sys

import pytest
from helpers import ROOT

from recbole_llamarec.keys import shown

sys.path.append(str(ROOT / "benchmarks"))

import fuzzed_settings
from fuzzed_settings import Pair

SEED = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_llama):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return fuzzed_settings.base_values(tmp_path_factory.mktemp("fuzz"), tiny_llama)


@pytest.mark.slow
def test_ten_thousand_values_are_accepted_or_refused_by_an_error_with_their_key(base):
    outcomes = [
        (pair.key, fuzzed_settings.check(base, pair))
        for pair in fuzzed_settings.pairs(10_000, SEED)
    ]
    assert [found for found in outcomes if found[1] not in ("accepted", "refused")] == []
    counts = {kind: sum(out == kind for _, out in outcomes) for kind in ("accepted", "refused")}
    assert min(counts.values()) > 2_000


def test_every_key_of_the_package_is_among_those_that_are_tried():
    tried = {pair.key for pair in fuzzed_settings.pairs(10_000, SEED)}
    assert {stated.name for stated in fuzzed_settings.all_keys()} <= tried


@pytest.mark.slow
def test_a_small_run_works_with_values_that_are_accepted(base, tiny_llama):
    accepted = [
        pair
        for pair in fuzzed_settings.pairs(400, SEED)
        if pair.is_small and fuzzed_settings.check(base, pair) == "accepted"
    ]
    outcomes = [(pair.key, fuzzed_settings.run(tiny_llama, pair)) for pair in accepted[:12]]
    assert [found for found in outcomes if found[1] not in ("ran", "refused")] == []
    assert sum(out == "ran" for _, out in outcomes) > 6


@pytest.mark.parametrize(
    "pair",
    [
        *(Pair("epochs", value) for value in (1.5, -1, True, None, float("nan"))),
        *(Pair("clip_grad_norm", value) for value in (5, {"norm": 1}, {"max_norm": -1})),
        *(Pair("stopping_step", value) for value in (-1, 2.5)),
        *(Pair("learner", value) for value in ("adamm", 3)),
        *(Pair("train_batch_size", value) for value in (0, 2**63)),
        *(Pair("seed", value) for value in (-1, 2**32, 1.5)),
        *(Pair("train_positions", value) for value in (2**63, 0)),
        *(Pair("item_text_fallback", value) for value in ("{x}", "{token!r}", None, "a\0b")),
        *(Pair("checkpoint_dir", value) for value in ("x" * 5000, "a\0b", None)),
        *(Pair("lora_alpha", value) for value in (float("nan"), float("inf"))),
        *(Pair("retriever", value) for value in ("__init__", "x" * 5000, "BPR")),
        *(Pair("train_neg_sample_args", value, True) for value in ({}, {"alpha": 1})),
        *(Pair("embedding_size", value, True) for value in (0, 1.5, 10**5000)),
    ],
    ids=lambda pair: f"{pair.key}={shown(pair.value)[:30]}",
)
def test_a_wrong_value_is_refused_by_an_error_with_its_key(base, pair):
    assert fuzzed_settings.check(base, pair) == "refused"
