"""The phases of a run: retrievers, tuning, saving, fusion, test, and RecBole's entry points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import checkpoint_of
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer
from runs import METRICS, batch_of, files, is_tuned, order_of, run_of

import recbole_llamarec.evaluation.validation as validation
from recbole_llamarec import LlamaRec, LRURec
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.integration.configs import random_rows
from recbole_llamarec.scoring.fusion import Fusion, FusionStep
from recbole_llamarec.trainer import LlamaRecTrainer

WRITTEN = {"users.csv"}  # beside the checkpoint, by the test
AUTO = {"rerank_fusion": "auto"}


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    """Nobody writes about a run, whatever has been imported."""
    monkeypatch.setattr(LlamaRecTrainer, "after_test", [])


def is_better_than_chance(result) -> bool:
    return result["test_result"]["recall@10"] > 10 / 60


def adapter_of(model) -> dict[str, torch.Tensor]:
    return model.other_parameter()["scorers"]["verbalizer"]["adapter"]


# --- retrievers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("retriever", ["SASRec", "GRU4Rec", "NARM", "BERT4Rec", "STAMP", "FPMC"])
def test_any_sequential_recommender_retrieves(tiny_run, retriever):
    """FPMC stands for those that draw negatives."""
    config = {"epochs": 8, "train_batch_size": 64, "learning_rate": 0.005}
    result = run_recbole(
        config_dict=tiny_run | {"retriever": retriever, "retriever_config": config}
    )
    assert files(tiny_run) == {"pth", "adapter", f"{retriever}.pth", *WRITTEN}
    assert is_better_than_chance(result) or retriever == "FPMC"
    saved = load_checkpoint(next(Path(tiny_run["checkpoint_dir"]).glob(f"*.{retriever}.pth")))
    assert saved["config"]["model"] == retriever
    assert saved["config"]["MAX_ITEM_LIST_LENGTH"] == 20  # the data are the run's
    assert saved["config"]["train_batch_size"] == 64  # its training is its own


def test_a_trained_retriever_is_loaded_instead_of_trained(tiny_run, trained):
    checkpoint = trained.checkpoint.with_suffix(".LRURec.pth")
    result = run_recbole(config_dict=tiny_run | {"retriever_checkpoint": str(checkpoint)})
    assert files(tiny_run) == {"pth", "adapter", *WRITTEN}
    assert result["test_result"] == trained.result["test_result"]


def test_lrurec_runs_by_itself(tiny_run):
    settings = tiny_run | {"model": "LRURec", "epochs": 5, "train_batch_size": 16}
    settings["learning_rate"] = 1e-3
    for key in ("retriever_config", "llm_name_or_path", "prompt_max_history", "rerank_candidates"):
        del settings[key]
    assert is_better_than_chance(run_recbole(config_dict=settings))


def test_the_retriever_alone_on_the_same_terms(tiny_run, monkeypatch):
    """Nothing of a language model is loaded, and seen items are masked in validation too."""
    monkeypatch.setattr("recbole_llamarec.scoring.language_model.load_language_model", None)
    trainer, train, valid, test = run_of(tiny_run, ranking_method="none")
    scores = []
    score, result = trainer.fit(train, valid, callback_fn=lambda _, score: scores.append(score))
    assert len(scores) == 3 and score == max(scores) == result["ndcg@10"]
    assert "full_sort_predict" not in vars(trainer.model.retriever)
    assert trainer.evaluate(test) == trainer.report.retriever.metrics
    assert [stage.name for stage in trainer.report.stages] == ["LRURec"]
    assert files(tiny_run) == {"pth", "LRURec.pth", *WRITTEN}
    assert list(trainer.report.users) == [
        *("user_id", "item_id", "rank:LRURec", *(f"{name}:LRURec" for name in METRICS)),
        *("history_length", "target_count"),
    ]


# --- tuning --------------------------------------------------------------------------------------


def test_nothing_is_saved_unless_asked_for(tiny_run):
    trainer, train, valid, test = run_of(tiny_run)
    trainer.fit(train, valid, saved=False)
    assert files(tiny_run) == set()
    assert trainer.evaluate(test, load_best_model=False)["recall@10"] > 10 / 60
    assert files(tiny_run) == set()


def test_zero_epochs_rank_without_tuning(tiny_run):
    trainer, train, valid, test = run_of(tiny_run, epochs=0)
    score, result = trainer.fit(train, valid)
    assert not is_tuned(adapter_of(trainer.model))
    assert result["ndcg@10"] == score
    assert trainer.evaluate(test) is not None and trainer.report.n_retrieved > 0


def test_the_best_adapter_is_kept_and_tuning_stops_early(tiny_run, monkeypatch):
    trainer, train, valid, _ = run_of(
        tiny_run, train_max_samples=80, train_eval_steps=1, stopping_step=2, train_eval_rows=5
    )
    states, scores = [], iter([0.1, 0.5, 0.3, 0.2, 0.1, 0.9])

    def scored(*_, **__):
        states.append(adapter_of(trainer.model))
        return {"ndcg@10": next(scores)}

    monkeypatch.setattr("recbole.trainer.Trainer.evaluate", scored)
    monkeypatch.setattr(trainer, "_train_retriever", lambda *_, **__: None)
    trainer.fit(train, valid, saved=False)
    assert trainer.best_valid_score == 0.5
    assert len(states) == 5  # two worse ones are allowed, the third stops
    best = adapter_of(trainer.model)
    assert all(torch.equal(best[name], states[1][name]) for name in best)
    assert any(not torch.equal(best[name], states[-1][name]) for name in best)


def test_validation_rows_are_few_and_fixed(tiny_run, monkeypatch):
    trainer, train, valid, _ = run_of(tiny_run, train_eval_rows=7, train_eval_steps=1)
    users, evaluate = [], Trainer.evaluate

    def recorded(self, data, *args, **options):
        users.append(data.dataset.inter_feat["user_id"])
        return evaluate(self, data, *args, **options)

    monkeypatch.setattr(trainer, "_train_retriever", lambda *_, **__: None)
    monkeypatch.setattr("recbole.trainer.Trainer.evaluate", recorded)
    trainer.fit(train, valid, saved=False)
    assert len(users) == 2 and len(users[0]) == 7 and torch.equal(*users)
    assert len(valid.dataset) > 7


def test_the_callback_is_told_each_validation_of_the_ranker(tiny_run):
    calls = []
    trainer, train, valid, _ = run_of(tiny_run, train_eval_steps=1)
    trainer.fit(train, valid, callback_fn=lambda step, score: calls.append((step, score)))
    assert [step for step, _ in calls] == [1, 2]


def test_a_run_without_validation_data_is_tuned_to_the_end(tiny_run):
    trainer, train, _, test = run_of(tiny_run)
    assert trainer.fit(train, None) == (-float("inf"), None)
    assert is_tuned(adapter_of(trainer.model))
    assert trainer.evaluate(test)["recall@10"] > 0
    assert trainer.evaluate(None) is None


@pytest.mark.parametrize("fusion", ["auto", None])
def test_a_ranker_that_is_not_tuned_is_validated_once(tiny_run, fusion):
    """Where the fusion is fitted, its rows are those of the validation; no others are ranked."""
    calls, ranked = [], []
    trainer, train, valid, _ = run_of(tiny_run, epochs=0, rerank_fusion=fusion, train_eval_rows=7)
    scorer = trainer.model.scorers["verbalizer"]
    scores = scorer.scores
    scorer.scores = lambda rows, items: ranked.append(len(items)) or scores(rows, items)
    score, result = trainer.fit(train, valid, callback_fn=lambda *call: calls.append(call))
    assert calls == [(0, score)] and score == result["ndcg@10"]
    if fusion is None:
        assert sum(ranked) <= 7
    else:
        assert sum(ranked) == trainer.model.fusion.n_rows
        assert result == [*trainer.journal.validation.values()][-1]


@pytest.mark.parametrize("options", [{"train_loss": "titles"}, {"evidence_items": 2}])
def test_likelihood_is_tuned_fused_and_reloaded(tiny_run, options):
    settings = (
        options
        | AUTO
        | {
            "ranking_method": "likelihood",
            "rerank_candidates": 30,  # more than a reader of letters would have room for
            "train_schedule": "cosine",
            "train_max_samples": 64,
        }
    )
    result = run_recbole(config_dict=tiny_run | settings)
    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    config, model, *_, test = load_data_and_model(str(checkpoint), tiny_run["data_path"])
    assert model.fusion.is_fitted and "likelihood" in model.fusion.weights
    assert is_tuned(model.other_parameter()["scorers"]["likelihood"]["adapter"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]


@pytest.mark.parametrize(
    "settings",
    [
        {"train_loss": "next_token"},
        {"train_candidates": "retriever", "train_candidates_from": 9},
        {"train_positions": 4},
        {"clip_grad_norm": None, "learner": "sgd"},
    ],
)
def test_other_ways_to_tune(tiny_run, settings):
    trainer, train, valid, _ = run_of(tiny_run, **settings)
    trainer.fit(train, valid, saved=False)
    assert is_tuned(adapter_of(trainer.model))


# --- saving --------------------------------------------------------------------------------------


def test_memory_that_runs_out_while_the_fusion_is_fitted_loses_no_tuning(tiny_run, monkeypatch):
    """Checkpoint and adapter are on disk, and the same run goes on with the fusion alone."""
    run = run_of(tiny_run, **AUTO)
    scorer = run.model.scorers["verbalizer"]
    scores = scorer.scores

    def small_device(rows, items):
        if run.model._pass.all_scorers:
            raise torch.OutOfMemoryError("llm_batch_tokens: one prompt does not fit")
        return scores(rows, items)

    scorer.scores = small_device
    with pytest.raises(torch.OutOfMemoryError):
        run.trainer.fit(run.train, run.valid)
    assert files(tiny_run) >= {"pth", "adapter", "LRURec.pth", "resume.pt"}
    tuned = adapter_of(run.model)
    assert is_tuned(tuned)
    (file,) = [f for f in Path(tiny_run["checkpoint_dir"]).glob("*.pth") if "." not in f.stem]
    saved = load_checkpoint(file)["other_parameter"]["scorers"]["verbalizer"]["adapter"]
    assert all(torch.equal(saved[name], tuned[name]) for name in tuned)
    assert [*file.with_suffix(".adapter").glob("adapter_model.safetensors")]

    monkeypatch.setattr("recbole_llamarec.trainer.train_retriever", None)
    again = run_of(tiny_run, **AUTO)
    monkeypatch.setattr("recbole_llamarec.tuning.loop.optimizer_step", None)
    again.trainer.fit(again.train, again.valid)
    assert again.trainer.saved_model_file == str(file)
    assert again.model.fusion.is_fitted
    now = adapter_of(again.model)
    assert all(torch.equal(now[name], tuned[name]) for name in tuned)


def test_memory_that_runs_out_in_tuning_changes_no_result(tiny_run, monkeypatch):
    """The step begins anew with smaller passes; every further one fits."""
    settings = {"lora_dropout": 0.0, "train_batch_tokens": 4000}
    plain = run_of(tiny_run, **settings)
    plain.trainer.fit(plain.train, plain.valid, saved=False)
    expected = adapter_of(plain.model)

    run, passes = run_of(tiny_run, **settings), []
    ranker = run.trainer.language_model.ranker
    compute = ranker.scores

    def small_device(batch):
        if ranker.model.training:
            passes.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(batch)

    monkeypatch.setattr(ranker, "scores", small_device)
    run.trainer.fit(run.train, run.valid, saved=False)
    assert max(passes) > 3 and max(passes[len(passes) // 2 :]) <= 3
    for name, weight in adapter_of(run.model).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3)


# --- fusion --------------------------------------------------------------------------------------


def fused(weights: dict[str, float], n_rows: int = 30) -> Fusion:
    """A fusion as it is fitted, with weights that the data would not give."""
    before: dict[str, float] = {}
    steps = []
    for name, weight in weights.items():
        before = {**before, name: weight}
        steps.append(FusionStep(name, 0.1, 0.01, before, beside_retriever=weight))
    return Fusion(weights, steps=tuple(steps), n_rows=n_rows)


def test_the_weight_is_fitted_on_validation_and_saved(tiny_run, caplog, monkeypatch):
    trainer, train, valid, test = run_of(tiny_run, **AUTO)
    fitted = []

    def fit(retriever, opinions, targets, masked):
        fitted.append((retriever, opinions["verbalizer"], targets, masked))
        return fused({"verbalizer": 0.7}, len(targets))

    monkeypatch.setattr(validation, "fit_fusion", fit)
    with caplog.at_level("INFO"):
        score, result = trainer.fit(train, valid)
        final = trainer.evaluate(test)
    assert "Fusion: verbalizer has weight 0.700" in caplog.text
    ((retriever, ranker, targets, masked),) = fitted
    assert retriever.shape == ranker.shape == (len(targets), 8) and 0 < len(targets) < 39
    assert (np.diff(retriever, axis=1) <= 0).all()  # in the retriever's order
    assert np.allclose(np.exp(ranker).sum(1), 1, atol=1e-4)
    assert ((targets >= 0) & (targets < 8)).all()
    assert masked.shape == retriever.shape and not masked.any()
    # the validation result is the fused one: as RecBole's evaluator finds it
    with trainer.model.evaluating(rerank=True, skip_misses=True):
        again = Trainer.evaluate(trainer, valid, load_best_model=False)
    assert result["ndcg@10"] == pytest.approx(again["ndcg@10"], abs=1e-4)
    assert score == result["ndcg@10"]
    report = trainer.report
    assert [stage.name for stage in report.stages] == [
        *("LRURec", "LRURec + verbalizer", "verbalizer", "final: LRURec + verbalizer"),
    ]
    users = report.users
    for stage in report.stages:
        mean = users[f"recall@10:{stage.name}"].mean()
        assert stage.metrics["recall@10"] == pytest.approx(mean, abs=1e-4)
    model = load_data_and_model(
        str(checkpoint_of(Path(tiny_run["checkpoint_dir"]))), tiny_run["data_path"]
    )[1]
    assert model.fusion == trainer.model.fusion
    again = run_of(tiny_run, **AUTO)
    again.trainer.model = model
    assert again.trainer.evaluate(again.test, load_best_model=False) == final


@pytest.mark.parametrize("method", ["verbalizer", "likelihood", "readout"])
@pytest.mark.parametrize("weight", [0.7, 0.0])
def test_evidence_is_fused_with_retriever_and_language_model(
    tiny_run, caplog, monkeypatch, method, weight
):
    """In evaluation and after loading; what it does alone stands beside it."""
    trainer, train, valid, test = run_of(tiny_run, ranking_method=method, evidence_items=3, **AUTO)
    fusion = fused({"evidence": 0.4, method: weight})
    monkeypatch.setattr(validation, "fit_fusion", lambda *_: fusion)
    with caplog.at_level("INFO"):
        _, result = trainer.fit(train, valid)
        final = trainer.evaluate(test)
    assert "evidence has weight 0.400" in caplog.text
    report = trainer.report
    by_name = {stage.name: stage.metrics for stage in report.stages}
    last = f"final: LRURec + evidence{f' + {method}' if weight else ''}"
    assert list(by_name) == [
        *("LRURec", "LRURec + evidence", f"LRURec + {method}"),
        *(f"LRURec + evidence + {method}", "evidence", method, last),
    ]
    assert list(trainer.journal.validation) == list(by_name)
    assert by_name["LRURec + evidence"] != pytest.approx(by_name["LRURec"], abs=1e-6)
    if not weight:
        assert final == pytest.approx(by_name["LRURec + evidence"], abs=1e-4)
    asked = trainer.model.scorers[method]
    if not weight:
        monkeypatch.setattr(asked, "scores", None)  # is not called where no table wants it
    with trainer.model.evaluating(rerank=True, skip_misses=True):
        again = Trainer.evaluate(trainer, valid, load_best_model=False)
    assert result["ndcg@10"] == pytest.approx(again["ndcg@10"], abs=1e-4)
    interaction, _ = batch_of(test)
    order = order_of(trainer.model.full_sort_predict(interaction))

    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    config, model, *_, test = load_data_and_model(str(checkpoint), tiny_run["data_path"])
    model.eval()
    loaded = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert loaded.evaluate(test, load_best_model=False) == final
    assert torch.equal(order_of(model.full_sort_predict(interaction)), order)


def test_evidence_without_a_language_model_is_fitted_and_loads_none(tiny_run, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.scoring.language_model.load_language_model", None)
    settings = {"ranking_method": "none", "evidence_items": 3}
    trainer, train, valid, test = run_of(tiny_run, **settings, **AUTO)
    score, result = trainer.fit(train, valid)
    final = trainer.evaluate(test)
    names = [stage.name for stage in trainer.report.stages]
    assert names[:3] == ["LRURec", "LRURec + evidence", "evidence"]
    assert result["ndcg@10"] == score and trainer.report.final.metrics == final
    assert files(tiny_run) == {"pth", "LRURec.pth", *WRITTEN}


@pytest.mark.parametrize("method", ["none", "verbalizer"])
def test_a_metric_of_whole_lists_is_that_of_the_final_order_on_the_rows_of_the_fit(
    tiny_run, method, monkeypatch
):
    own = {"metrics": ["NDCG", "ItemCoverage"], "valid_metric": "ItemCoverage@5"}
    settings = {"ranking_method": method, "evidence_items": 3, "rerank_fusion_rows": 20}
    trainer, train, valid, _ = run_of(tiny_run, epochs=0, **own, **settings, **AUTO)
    fusion = fused(dict.fromkeys(trainer.model.scorers, 0.4))
    monkeypatch.setattr(validation, "fit_fusion", lambda *_: fusion)
    score, result = trainer.fit(train, valid)
    rows = random_rows(valid, trainer.config, 20)
    with trainer.model.evaluating(rerank=True):
        expected = Trainer.evaluate(trainer, rows, load_best_model=False)
    assert result == pytest.approx(dict(expected), abs=1e-4)
    assert score == result["itemcoverage@5"] > 0
    assert result == [*trainer.journal.validation.values()][-1]


def test_the_fusion_is_fitted_on_no_more_rows_than_the_key_says(tiny_run):
    trainer, train, valid, _ = run_of(tiny_run, rerank_fusion_rows=9, epochs=0, **AUTO)
    trainer.fit(train, valid, saved=False)
    assert 0 < trainer.model.fusion.n_rows <= 9


def test_with_weight_0_the_order_is_the_retrievers(tiny_run):
    trainer, train, valid, test = run_of(tiny_run, rerank_fusion=0)
    trainer.fit(train, valid)
    assert trainer.evaluate(test) == trainer.report.retriever.metrics
    assert [s.name for s in trainer.report.stages] == ["LRURec", "verbalizer", "final: LRURec"]


def test_a_great_weight_leaves_the_ranker_in_charge(tiny_run):
    trainer, train, valid, test = run_of(tiny_run, rerank_fusion=1e6)
    trainer.fit(train, valid)
    result = trainer.evaluate(test)
    by_name = {stage.name: stage.metrics for stage in trainer.report.stages}
    assert list(by_name) == ["LRURec", "verbalizer", "final: LRURec + verbalizer"]
    assert result == pytest.approx(by_name["verbalizer"], abs=1e-4)


def test_fusion_without_validation_data_leaves_the_language_model_alone(tiny_run, caplog):
    trainer, train, _, _ = run_of(tiny_run, **AUTO)
    trainer.fit(train, None)
    assert "rerank_fusion: auto needs validation data" in caplog.text
    assert trainer.model.fusion == Fusion({"verbalizer": 1.0}, with_retriever=False)


def test_evidence_without_validation_data_leaves_the_retriever_alone(tiny_run, caplog):
    settings = {"ranking_method": "none", "evidence_items": 3}
    trainer, train, _, test = run_of(tiny_run, **settings, **AUTO)
    trainer.fit(train, None)
    assert not trainer.model.fusion.changes_order
    assert trainer.evaluate(test) == trainer.report.retriever.metrics


# --- test ----------------------------------------------------------------------------------------


def test_metrics_of_each_user_stand_beside_the_checkpoint(trained):
    users = pd.read_csv(trained.checkpoint.with_suffix(".users.csv"), dtype={"user_id": str})
    assert users["user_id"].is_unique and len(users) == 39
    stages = ["LRURec", "verbalizer", "final: verbalizer"]
    assert list(users) == [
        *("user_id", "item_id"),
        *(f"{name}:{stage}" for stage in stages for name in ("rank", *METRICS)),
        *("history_length", "target_count", "first:verbalizer", "first_count:verbalizer"),
        "row",
    ]
    for name, value in trained.result["test_result"].items():
        assert users[f"{name}:final: verbalizer"].mean() == pytest.approx(value, abs=1e-4)
    ranks = users[["rank:LRURec", "rank:final: verbalizer"]]
    moved = ranks.iloc[:, 0] != ranks.iloc[:, 1]
    assert moved.any() and (ranks[moved] <= 8).all(None)


def test_the_length_of_a_history_is_what_was_chosen_before_the_row(trained):
    users = pd.read_csv(trained.checkpoint.with_suffix(".users.csv"), dtype={"user_id": str})
    lines = pd.read_csv(Path(trained.data_path) / "tiny" / "tiny.inter", sep="\t", dtype=str)
    chosen = lines["user_id:token"].value_counts()
    assert users["history_length"].tolist() == (chosen[users["user_id"]] - 1).tolist()


def test_rows_that_were_not_ranked_have_no_first_choice(tiny_run):
    trainer, train, valid, test = run_of(tiny_run, epochs=0)
    trainer.fit(train, valid)
    trainer.evaluate(test)
    users = trainer.report.users
    missed = users["rank:LRURec"] > 8
    assert missed.any() and (users["first:verbalizer"].isna() == missed).all()
    trainer.skip_misses = False
    trainer.evaluate(test)
    assert trainer.report.users["first:verbalizer"].notna().all()


def test_a_ranker_worse_than_its_retriever_is_called_so(tiny_run, caplog):
    trainer, train, valid, test = run_of(tiny_run)
    trainer.fit(train, valid)
    scorer = trainer.model.scorers["verbalizer"]
    scorer.scores = lambda rows, items: torch.arange(8.0).repeat(len(items), 1)  # reversed
    with caplog.at_level("WARNING"):
        trainer.evaluate(test, load_best_model=False)
    assert "worse than the retriever's" in caplog.text and "Tune it on more" in caplog.text


def test_the_state_of_a_run_stands_beside_it_until_it_has_been_tested(tiny_run):
    trainer, train, valid, test = run_of(tiny_run, **AUTO)
    trainer.fit(train, valid)
    assert files(tiny_run) >= {"resume.pt", "lock"}
    trainer.evaluate(test)
    assert files(tiny_run) == {"pth", "adapter", "LRURec.pth", *WRITTEN}


def test_runs_that_begin_in_the_same_second_have_checkpoints_of_their_own(tiny_run, monkeypatch):
    """RecBole names them by the second; the first one is not complete when the other begins."""
    monkeypatch.setattr("recbole.trainer.trainer.get_local_time", lambda: "now")
    trainers = []
    for epochs in (0, 1):
        run = run_of(tiny_run, ranking_method="none", epochs=epochs)
        run.trainer.fit(run.train, run.valid)
        trainers.append(run.trainer)
    assert [Path(own.saved_model_file).name for own in trainers] == [
        "LlamaRec-now.pth",
        "LlamaRec-now-2.pth",
    ]


def test_whoever_writes_about_a_tested_run_is_told_once_its_files_are_there(tiny_run):
    told: list = []
    LlamaRecTrainer.after_test.append(told.append)
    trainer, train, valid, test = run_of(tiny_run)
    trainer.fit(train, valid)
    trainer.evaluate(test)
    (tested,) = told
    assert tested.checkpoint == Path(trainer.saved_model_file)
    assert tested.checkpoint.with_suffix(".users.csv").is_file()
    assert tested.trainer is trainer and tested.report is trainer.report
    assert len(tested.records.rows["users"]) == tested.report.n_rows and tested.loader is test
    other = run_of(tiny_run)
    other.trainer.fit(other.train, other.valid, saved=False)
    other.trainer.evaluate(other.test, load_best_model=False)
    assert len(told) == 1


# --- RecBole's own entry points ------------------------------------------------------------------


def test_recbole_finds_models_and_trainers_by_name():
    assert get_model("LlamaRec") is LlamaRec and get_model("LRURec") is LRURec
    assert get_trainer(None, "LlamaRec") is LlamaRecTrainer
    assert get_trainer(None, "LRURec").__name__ == "LRURecTrainer"


def test_objective_function(tiny_run):
    result = objective_function(tiny_run)
    assert result["model"] == "LlamaRec" and result["best_valid_score"] > 0


def test_hyper_tuning(tiny_run):
    pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    def objective(config_dict, config_file_list):
        return objective_function(tiny_run | config_dict, config_file_list, saved=False)

    space = {"choice": {"learning_rate": [1e-3, 1e-2]}}
    tuning = HyperTuning(objective, params_dict=space, algo="exhaustive")
    tuning.run()
    assert tuning.best_params["learning_rate"] in (1e-3, 1e-2)
    assert len(tuning.params2result) == 2
