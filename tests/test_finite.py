"""A score that is not finite ends what is done, with stage, row and remedy."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from runs import run_of

from recbole_llamarec.finite import NotFiniteError, check_finite, naming_stage
from recbole_llamarec.integration.checkpoints import load_data_and_model
from recbole_llamarec.ranking.model.adapter import save_adapter
from recbole_llamarec.recommend import as_lines
from recbole_llamarec.recommender import Recommendation, Recommender
from recbole_llamarec.scoring.fusion import Fusion
from recbole_llamarec.serve.engine import Engine
from recbole_llamarec.serve.errors import as_service_error
from recbole_llamarec.serve.schema import RankRequest, RecommendRequest
from recbole_llamarec.tuning.loop import TuningLoop

REMEDY = "Set llm_dtype to float32"
SHORT = {"retriever_config": {"epochs": 3, "train_batch_size": 16}, "epochs": 0}


def spoil(model: torch.nn.Module) -> None:
    """Put one NaN into the language model's last layer norm, which every score reads."""
    norm = next(weight for name, weight in model.named_parameters() if "model.norm" in name)
    norm.data[3] = math.nan


# --- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_row_with_a_score_that_is_not_finite_is_named(value):
    scores = torch.zeros(4, 3)
    check_finite(scores, "scores of evidence", "Leave it out.")
    scores[2, 1] = scores[3, 0] = value
    with pytest.raises(NotFiniteError, match=r"The scores of evidence of row 2 .*Leave") as error:
        check_finite(scores, "scores of evidence", "Leave it out.")
    assert error.value.row == 2 and str(value) in str(error.value)


def test_stages_stand_before_the_error_once_each_and_before_no_other():
    with (
        pytest.raises(NotFiniteError, match=r"^service: rank: no$") as error,
        naming_stage("service"),
        naming_stage("rank"),
        naming_stage("rank"),
    ):
        raise NotFiniteError("no", 7)
    assert error.value.row == 7
    with pytest.raises(ValueError, match=r"^other$"), naming_stage("rank"):
        raise ValueError("other")


# --- a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"epochs": 1}, "tuning step 1"),
        ({}, "validation step 0"),
        ({"rerank_fusion": "auto"}, "fusion"),
    ],
)
def test_a_nan_weight_of_the_language_model_ends_a_run(tiny_run, changes, stage):
    run = run_of(tiny_run | SHORT, **changes)
    spoil(run.trainer.language_model.ranker.model)
    with pytest.raises(NotFiniteError, match=rf"^{stage}: .*llm_dtype") as error:
        run.trainer.fit(run.train, run.valid)
    assert stage.startswith("tuning") or re.search(r"of row \d+ are", str(error.value))


def test_a_weight_that_is_lost_in_tuning_ends_the_validation_which_names_the_user(
    tiny_run, monkeypatch
):
    step = TuningLoop._step

    def spoiling(self, progress, bar):
        step(self, progress, bar)
        spoil(self.adapter.ranker.model)

    monkeypatch.setattr(TuningLoop, "_step", spoiling)
    run = run_of(tiny_run | SHORT, epochs=1, train_max_samples=8)
    words = r"^validation step 1: verbalizer \(user '\d+'\): The ranker's scores of row \d+ are not"
    with pytest.raises(NotFiniteError, match=words):
        run.trainer.fit(run.train, run.valid)


def test_a_weight_that_is_lost_behind_the_fusion_ends_the_test(tiny_run):
    """Also where the language model has no weight, and would be said to add nothing."""
    run = run_of(tiny_run | SHORT, train_max_samples=0)
    run.trainer.fit(run.train, run.valid, saved=False)
    run.model.fusion = Fusion({"verbalizer": 0.0})
    spoil(run.trainer.language_model.ranker.model)
    with pytest.raises(NotFiniteError, match=rf"^test: .*row \d+.*{REMEDY}"):
        run.trainer.evaluate(run.test, load_best_model=False)


def test_float16_that_overflows_ends_a_run(tiny_run):
    run = run_of(tiny_run | SHORT, rerank_fusion="auto", llm_dtype="float16")
    for name, weight in run.trainer.language_model.ranker.model.named_parameters():
        if ".mlp." in name:
            weight.data.fill_(200.0)  # products of two of these are beyond 65504
    with pytest.raises(NotFiniteError, match=rf"^fusion: .*{REMEDY} or bfloat16"):
        run.trainer.fit(run.train, run.valid)


def test_an_adapter_file_whose_scale_is_nan_is_refused(tiny_run, tmp_path):
    run = run_of(tiny_run | SHORT)
    save_adapter(run.trainer.language_model.ranker.model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": math.nan}))
    (tmp_path / "adapter" / "SHA256SUMS").unlink()
    run = run_of(tiny_run | SHORT, lora_adapter=str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=f"{tmp_path}/adapter.*lora_alpha is nan"):
        run.trainer.fit(run.train, run.valid)


def test_a_retriever_whose_loss_is_nan_says_whose_it_is(tiny_run):
    run = run_of(tiny_run, ranking_method="none")
    run.model.retriever.item_bias.data[5] = math.nan
    words = "^training of the retriever LRURec: The loss is NaN.*learning_rate.*retriever_config"
    with pytest.raises(NotFiniteError, match=words):
        run.trainer.fit(run.train, run.valid)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_retriever_whose_scores_are_not_finite_ends_the_test(tiny_run, value):
    run = run_of(tiny_run, ranking_method="none")
    run.model.retriever.item_bias.data[5] = value
    with pytest.raises(NotFiniteError, match=r"^test: The retriever.*learning_rate"):
        run.trainer.evaluate(run.test, load_best_model=False)


# --- a trained model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(trained):
    """A trained model with one NaN weight in its language model."""
    _, model, dataset, *_ = load_data_and_model(str(trained.checkpoint), trained.data_path)
    recommender = Recommender(model, dataset)
    spoil(recommender.language_model.ranker.model)
    return recommender


def test_recommendations_and_rankings_end_with_their_stage(spoilt):
    tokens = spoilt.tokens[1:5].tolist()
    with pytest.raises(NotFiniteError, match=rf"^recommend: .*row 0 .*{REMEDY}"):
        spoilt.recommend([tokens])
    with pytest.raises(NotFiniteError, match=rf"^rank: .*row 0 .*{REMEDY}"):
        spoilt.rank(tokens[:2], tokens[2:])


def test_the_service_fails_with_500_and_its_log_names_the_stage(spoilt, caplog):
    tokens = tuple(spoilt.tokens[1:5].tolist())
    requests = [
        RecommendRequest(history=tokens, k=3, prompt=False),
        RankRequest(history=(), candidates=tokens, prompt=False),
    ]
    for answer, stage in zip(
        Engine(spoilt).compute(requests), ("service: recommend", "service: rank"), strict=True
    ):
        assert isinstance(answer, NotFiniteError) and str(answer).startswith(f"{stage}: ")
        with caplog.at_level("ERROR", "uvicorn.error"):
            assert as_service_error(answer).status == 500
        assert stage in caplog.text


def test_weights_of_the_fusion_that_are_nan_are_an_error(recommender):
    before = recommender.model.fusion
    recommender.model.fusion = Fusion({"verbalizer": math.nan})
    try:
        with pytest.raises(NotFiniteError, match=r"^recommend: The fusion's .*rerank_fusion"):
            recommender.recommend([recommender.tokens[1:4].tolist()])
    finally:
        recommender.model.fusion = before


def test_lines_of_json_never_hold_nan():
    item = Recommendation("i1", "Heat", 1, math.nan, None, 1)
    with pytest.raises(ValueError, match="JSON"):
        as_lines([item])
