"""Rows, learning rate and validations of each optimizer step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from runs import run_of

from recbole_llamarec.ranking.losses import LabelLoss
from recbole_llamarec.tuning.plan import (
    TuningPlan,
    learning_rate_factor,
    tuning_plan,
    warn_of_keys_without_effect,
)
from recbole_llamarec.tuning.samples import TuningSamples


def plan_of(n_steps: int = 10, **changes) -> TuningPlan:
    given = {
        "batches": [np.arange(2)] * n_steps,
        "loss": LabelLoss(),
        "learning_rate": 0.5,
        "schedule": "constant",
        "clipping": None,
        "eval_steps": None,
        "validates": True,
        "validates_untuned": True,
        "stopping_step": 10,
        "bigger": True,
        "seed": 1,
    }
    return TuningPlan(**(given | changes))


def test_the_cosine_schedule_rises_and_falls_to_nothing():
    factors = [learning_rate_factor("cosine", step, 100) for step in range(1, 101)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(0)
    assert learning_rate_factor("cosine", 1, 1) == 1


def test_the_constant_schedule_is_the_learning_rate():
    assert learning_rate_factor("constant", 7, 100) == 1
    assert plan_of().learning_rate_at(3) == 0.5
    assert plan_of(100, schedule="cosine").learning_rate_at(1) == pytest.approx(0.5 / 3)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [10]),
        ({"eval_steps": 4}, [4, 8, 10]),
        ({"eval_steps": 5}, [5, 10]),
        ({"validates": False, "eval_steps": 4}, []),
        ({"n_steps": 0, "eval_steps": 4}, [0]),
        ({"n_steps": 0, "validates_untuned": False}, []),
    ],
)
def test_validations_stand_at_the_interval_and_at_the_end(changes, steps):
    plan = plan_of(**changes)
    assert [step for step in range(len(plan.batches) + 1) if plan.validates_at(step)] == steps


def test_the_plan_of_a_run_is_what_its_keys_say(tiny_run):
    settings = {
        "train_loss": "next_token",
        "train_schedule": "cosine",
        "train_eval_steps": 3,
        "stopping_step": 4,
        "clip_grad_norm": {"max_norm": 0.7},
        "epochs": 2,
        "seed": 9,
    }
    run = run_of(tiny_run, **settings)
    samples = TuningSamples(run.model, run.train.dataset, 9)
    scorer = run.trainer.language_model
    plan = tuning_plan(samples, scorer, run.model.settings, run.trainer.config, True)
    assert [len(batch) for batch in plan.batches] == [8, 8] * 2  # train_max_samples is 16
    assert plan.loss is scorer.ranker.losses["next_token"]
    assert (plan.learning_rate, plan.schedule, plan.clipping) == (0.01, "cosine", {"max_norm": 0.7})
    assert (plan.eval_steps, plan.stopping_step, plan.bigger, plan.seed) == (3, 4, True, 9)
    assert plan.validates and plan.validates_untuned


@pytest.mark.parametrize(
    ("fusion", "metrics", "validates"),
    [
        ("auto", ["NDCG"], False),
        ("auto", ["NDCG", "ItemCoverage"], True),
        (0.5, ["NDCG"], True),
        (None, ["NDCG"], True),
    ],
)
def test_an_untuned_ranker_is_validated_unless_the_fit_of_the_fusion_does(
    tiny_run, fusion, metrics, validates
):
    settings = {"rerank_fusion": fusion, "metrics": metrics, "clip_grad_norm": None, "epochs": 0}
    run = run_of(tiny_run, **settings)
    samples = TuningSamples(run.model, run.train.dataset, 9)
    scorer = run.trainer.language_model
    plan = tuning_plan(samples, scorer, run.model.settings, run.trainer.config, True)
    assert plan.validates_at(0) is validates and plan.clipping is None


def test_only_keys_of_tuning_are_without_effect_and_only_where_an_adapter_was_found(caplog):
    of_tuning = {"epochs": 3, "train_loss": "next_token", "lora_r": 16, "learning_rate": 1e-3}
    others = {"lora_adapter": "auto", "valid_metric": "MRR@10", "train_eval_rows": 9, "seed": 1}
    config = SimpleNamespace(external_config_dict=others | of_tuning | {"save_every_minutes": 5})
    warn_of_keys_without_effect(None, config)
    warn_of_keys_without_effect("a card", SimpleNamespace(external_config_dict=others))
    assert caplog.messages == []
    warn_of_keys_without_effect("a card", config)
    (warning,) = caplog.messages
    assert "no effect: epochs, learning_rate, lora_r, train_loss." in warning
