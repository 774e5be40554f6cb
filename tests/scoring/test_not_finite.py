"""A language model whose scores are not finite ends every stage with its name, row and remedy."""

from __future__ import annotations

import json

import pytest
import torch
from recbole.quick_start import run_recbole
from runs import run_of

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.tuning.loop import TuningLoop


def spoil(model: torch.nn.Module) -> None:
    """One weight of the first layer is no number, as in a damaged file or after an overflow."""
    weight = next(w for name, w in model.named_parameters() if name.endswith("down_proj.weight"))
    weight.data[0, 0] = torch.nan


def spoilt(settings: dict, **changes):
    run = run_of(settings, **changes)
    spoil(run.model.scorers["verbalizer"].ranker.model)
    return run


def test_tuning_says_that_its_loss_is_not_finite(tiny_run):
    run = spoilt(tiny_run)
    with pytest.raises(ValueError, match="training loss is nan; lower learning_rate.*llm_dtype"):
        run.trainer.fit(run.train, run.valid)


def test_a_validation_names_itself_user_and_remedy(tiny_run, monkeypatch):
    run = run_of(tiny_run, train_eval_rows=None, train_max_samples=8)
    step = TuningLoop._step

    def spoiling(self, progress, bar):
        step(self, progress, bar)
        spoil(self.adapter.ranker.model)

    monkeypatch.setattr(TuningLoop, "_step", spoiling)
    words = r"validation 1: the scores of verbalizer for row \d+ of the batch \(user '\d+'\).*llm_"
    with pytest.raises(ValueError, match=words):
        run.trainer.fit(run.train, run.valid)


@pytest.mark.parametrize("kind", ["fusion", "test"])
def test_fusion_and_test_name_themselves(tiny_run, kind):
    run = run_of(tiny_run, epochs=0, rerank_fusion="auto" if kind == "fusion" else 0.5)
    if kind == "test":
        run.trainer.fit(run.train, run.valid)
    spoil(run.model.scorers["verbalizer"].ranker.model)
    with pytest.raises(ValueError, match=rf"{kind}: the scores of verbalizer .* not finite: \[nan"):
        if kind == "fusion":
            run.trainer.fit(run.train, run.valid)
        else:
            run.trainer.evaluate(run.test, load_best_model=False)


def test_recommendations_and_rankings_hold_no_nan(trained):
    recommender = Recommender.from_checkpoint(trained.checkpoint, trained.data_path)
    items = recommender.tokens[1:6].tolist()
    assert "NaN" not in json.dumps([vars(item) for item in recommender.recommend([items], k=3)[0]])
    spoil(recommender.model.scorers["verbalizer"].ranker.model)
    with pytest.raises(ValueError, match=r"recommend: the scores of verbalizer for row 0 .*llm_dt"):
        recommender.recommend([items], k=3)
    with pytest.raises(ValueError, match="scores of verbalizer for row 0 .*not finite"):
        recommender.rank(items[:2], items[2:])


def test_half_precision_that_overflows_is_an_error(tiny_run, workdir):
    run = run_of(tiny_run, epochs=0, rerank_fusion="auto", llm_dtype="float16")
    model = run.model.scorers["verbalizer"].ranker.model
    for name, weight in model.named_parameters():
        if "down_proj" in name or "up_proj" in name:
            weight.data *= 1e5  # beyond float16's 65,504
    with pytest.raises(ValueError, match="fusion: .*not finite.*llm_dtype to float32"):
        run.trainer.fit(run.train, run.valid)


def test_an_adapter_that_is_scaled_by_nan_is_refused(tiny_run, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    with pytest.raises(ValueError, match="lora_alpha: nan must be"):
        run_recbole(config_dict={**tiny_run, "lora_alpha": float("nan")})
