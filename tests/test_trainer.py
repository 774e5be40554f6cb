"""Both stages in one run: retrievers, budgets, early stopping, RecBole's entry points."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, checkpoint_of, environment
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer

import recbole_llamarec.trainer as trainer_module
from recbole_llamarec import LlamaRec, LRURec
from recbole_llamarec.analysis import describe
from recbole_llamarec.fusion import EvidenceFusion, Fusion
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.ranking.tuning import learning_rate_factor
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.retrieval.neighbours import PRIOR_COUNT, training_sequences
from recbole_llamarec.tuning_samples import TuningSamples

WRITTEN = ("users.csv", "report.json", "html")  # beside the checkpoint, by the test


def files(settings) -> set[str]:
    """Endings of what a run left in its checkpoint directory."""
    folder = Path(settings["checkpoint_dir"])
    return {file.name.split(".", 1)[1] for file in folder.iterdir()}


def is_better_than_chance(result) -> bool:
    return result["test_result"]["recall@10"] > 10 / 60


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


def trainer_of(settings):
    """A trainer and its data, before training."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    config = Config(config_dict=dict(settings))
    train, valid, test = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, train.dataset)
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model), train, valid, test


def test_nothing_is_saved_unless_asked_for(tiny_run):
    trainer, train, valid, test = trainer_of(tiny_run)
    trainer.fit(train, valid, saved=False)
    assert files(tiny_run) == set()
    assert trainer.evaluate(test, load_best_model=False)["recall@10"] > 10 / 60


def test_zero_epochs_rank_without_tuning(tiny_run):
    trainer, train, valid, test = trainer_of(tiny_run | {"epochs": 0})
    score, result = trainer.fit(train, valid)
    state = trainer.model.other_parameter()["adapter"]["state"]
    assert all((t == 0).all() for name, t in state.items() if "lora_B" in name)
    assert result["ndcg@10"] == score
    assert trainer.evaluate(test) is not None and trainer.report.n_retrieved > 0


def test_every_prefix_is_a_sample_without_a_limit(tiny_run):
    trainer, train, _, _ = trainer_of(
        tiny_run | {"train_max_samples": None, "epochs": 2, "train_batch_size": 50}
    )
    batches = TuningSamples(trainer.model, train.dataset, seed=1).batches(2, 50)
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == sorted([*range(len(train.dataset))] * 2)
    assert rows[: len(train.dataset)] != rows[len(train.dataset) :]  # a new order each epoch
    assert max(map(len, batches)) == 50


def test_the_best_adapter_is_kept_and_tuning_stops_early(tiny_run, monkeypatch):
    trainer, train, valid, _ = trainer_of(
        tiny_run
        | {"train_max_samples": 80, "train_eval_steps": 1, "stopping_step": 2, "train_eval_rows": 5}
    )
    states, scores = [], iter([0.1, 0.5, 0.3, 0.2, 0.1, 0.9])

    def scored(*_, **__):
        states.append(trainer.model.other_parameter()["adapter"]["state"])
        return {"ndcg@10": next(scores)}

    trainer.settings = trainer.model.settings
    monkeypatch.setattr("recbole.trainer.Trainer.evaluate", scored)
    trainer.model.ranker  # noqa: B018
    trainer._tune(train, valid, True, False, None)
    assert trainer.best_valid_score == 0.5
    assert len(states) == 5  # two worse ones are allowed, the third stops
    best = trainer.model.other_parameter()["adapter"]["state"]
    assert all(torch.equal(best[name], states[1][name]) for name in best)
    assert any(not torch.equal(best[name], states[-1][name]) for name in best)


def test_validation_rows_are_few_and_fixed(tiny_run):
    trainer, _, valid, _ = trainer_of(tiny_run | {"train_eval_rows": 7})
    rows = [trainer._subset(valid, 7).dataset.inter_feat["user_id"] for _ in range(2)]
    assert len(rows[0]) == 7 and torch.equal(*rows)
    assert len(valid.dataset) > 7


def test_callback_and_no_validation_data(tiny_run):
    calls = []
    trainer, train, valid, _ = trainer_of(tiny_run | {"train_eval_steps": 1})
    trainer.fit(train, valid, callback_fn=lambda step, score: calls.append((step, score)))
    assert [step for step, _ in calls] == [1, 2]
    trainer, train, _, test = trainer_of(tiny_run)
    assert trainer.fit(train, None) == (-float("inf"), None)
    assert trainer.evaluate(test)["recall@10"] > 0
    assert trainer.evaluate(None) is None


@pytest.mark.parametrize("fusion", ["auto", None])
def test_a_ranker_that_is_not_tuned_is_validated_once(tiny_run, fusion):
    """Where the fusion is fitted, its rows are those of the validation; no others are ranked."""
    calls, ranked = [], []
    settings = {"epochs": 0, "rerank_fusion": fusion, "train_eval_rows": 7}
    trainer, train, valid, _ = trainer_of(tiny_run | settings)
    rank = trainer.model.ranker.rank
    trainer.model.ranker.rank = lambda h, c, p: ranked.append(len(h)) or rank(h, c, p)
    score, result = trainer.fit(train, valid, callback_fn=lambda *call: calls.append(call))
    assert calls == [(0, score)] and score == result["ndcg@10"]
    if fusion is None:
        assert sum(ranked) <= 7
    else:
        assert sum(ranked) == trainer.journal.fusion.n_rows
        assert result == trainer.journal.validation["fused"]


def test_a_ranker_worse_than_its_retriever_is_called_so(tiny_run, caplog):
    trainer, train, valid, test = trainer_of(tiny_run)
    trainer.fit(train, valid)
    rank = trainer.model.ranker.rank
    trainer.model.ranker.rank = lambda h, c, p: torch.arange(8.0).repeat(len(h), 1)  # reversed
    with caplog.at_level("WARNING"):
        trainer.evaluate(test, load_best_model=False)
    assert "worse than its retriever" in caplog.text
    trainer.model.ranker.rank = rank


def test_the_retriever_alone_on_the_same_terms(tiny_run, trained, monkeypatch):
    """Nothing of a language model is loaded, and seen items are masked in validation too."""
    monkeypatch.setattr("recbole_llamarec.llamarec.load_language_model", None)
    trainer, train, valid, test = trainer_of(tiny_run | {"ranking_method": "none"})
    scores = []
    score, result = trainer.fit(train, valid, callback_fn=lambda _, score: scores.append(score))
    assert len(scores) == 3 and score == max(scores) == result["ndcg@10"]
    assert "full_sort_predict" not in vars(trainer.model.retriever)
    assert trainer.evaluate(test) == trainer.report.retriever
    assert trainer.report.llamarec is None and "LlamaRec" not in trainer.report.table()
    assert files(tiny_run) == {"pth", "LRURec.pth", *WRITTEN}
    assert list(trainer.report.users) == [
        *("user_id", "item_id", "retriever_rank"),
        *(f"retriever_{m}@{k}" for m in ("recall", "mrr", "ndcg") for k in (5, 10)),
        *("history_length", "target_count"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"train_loss": "titles"},
        {"evidence_items": 2},
        {"evidence_items": 2, "evidence_use": "prompt"},
        {"evidence_items": 2, "evidence_use": "prompt", "train_loss": "evidence"},
    ],
)
def test_likelihood_is_tuned_fused_and_reloaded(tiny_run, options):
    settings = options | {
        "ranking_method": "likelihood",
        "rerank_candidates": 30,  # more than there are letters to rank by in one case
        "rerank_fusion": "auto",
        "train_schedule": "cosine",
        "train_max_samples": 64,
    }
    result = run_recbole(config_dict=tiny_run | settings)
    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    config, model, dataset, *_, test = load_data_and_model(str(checkpoint))
    assert model.fusion_weight is not None
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]

    recommender = Recommender(model, dataset)
    pool = [f"i{n}" for n in range(40)]  # in no windows: nothing bounds a pool
    ranked = recommender.rank(["i1", "i2"], [*pool, {"text": "A film that no catalogue has"}])
    assert sum(item.probability for item in ranked) == pytest.approx(1)
    assert [item.score for item in ranked] == sorted((r.score for r in ranked), reverse=True)


def test_evidence_comes_from_other_users_training_items_alone(tiny_run):
    settings = {
        "ranking_method": "likelihood",
        "evidence_items": 3,
        "evidence_window": 5,
        "evidence_use": "prompt",
        "evidence_followers": 4,
    }
    config = Config(config_dict=tiny_run | settings)
    train, _, _ = data_preparation(config, create_dataset(config))
    model = LlamaRec(config, train.dataset)
    samples = TuningSamples(model, train.dataset, seed=1)
    n_shown = 0
    for row in range(0, len(samples), 7):
        pools = samples.pools(np.array([row]), step=1)
        (shown,) = samples.histories_with_evidence(np.array([row]), pools)
        history = samples.sequences[row, : samples.lengths[row]].tolist()
        recent = history[-5:]  # prompt_max_history
        assert shown[len(shown) - len(recent) :] == recent
        evidence = shown[: len(shown) - len(recent)]
        others = set(range(model.n_items)) - {samples.users[row]}
        followed = {
            (int(a), int(b))
            for user in others
            for a, b in pairs_within(sequence_of(samples, user), 5)
        }
        last = None
        for item in evidence:
            if item in history:
                last = item
            else:
                assert (last, item) in followed
                assert item in pools[0][0]
                n_shown += 1
    assert n_shown > 50, n_shown


def test_targets_of_evidence_are_the_shares_of_the_followers(tiny_run):
    settings = {
        "ranking_method": "likelihood",
        "evidence_items": 2,
        "evidence_use": "prompt",
        "train_loss": "evidence",
    }
    config = Config(config_dict=tiny_run | settings)
    train, _, _ = data_preparation(config, create_dataset(config))
    model = LlamaRec(config, train.dataset)
    samples = TuningSamples(model, train.dataset, seed=1)
    rows = np.arange(0, len(samples), 9)
    pools = samples.pools(rows, step=1)
    targets = samples.choices(rows, pools)
    assert targets.shape == (len(rows), 8)
    assert targets.sum(1) == pytest.approx(1)
    for row, (candidates, _), target in zip(rows, pools, targets, strict=True):
        history, user = samples.sequences[row, : samples.lengths[row]], samples.users[row]
        shares = model.neighbours.summed_shares(history, candidates, user)
        assert target.argmax() == shares.argmax()
        assert target == pytest.approx(shares / shares.sum())
    model.settings = replace(model.settings, train_loss="label")
    labels = [label for _, label in pools]
    of_labels = TuningSamples(model, train.dataset, seed=1).choices(rows, pools)
    assert of_labels.argmax(1).tolist() == labels and (of_labels.sum(1) == 1).all()


def sequence_of(samples: TuningSamples, user: int) -> list[int]:
    rows = np.flatnonzero(samples.users == user)
    if not len(rows):
        return []
    first = samples.sequences[rows[0], : samples.lengths[rows[0]]].tolist()
    return first + samples.targets[rows].tolist()


def pairs_within(sequence: list[int], window: int) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(sequence) for b in sequence[i + 1 : i + 1 + window]]


def test_the_cosine_schedule_rises_and_falls_to_nothing():
    factors = [learning_rate_factor("cosine", step, 100) for step in range(1, 101)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(0)
    assert learning_rate_factor("constant", 7, 100) == 1
    assert learning_rate_factor("cosine", 1, 1) == 1


def test_generated_lists_rank_untuned(tiny_run, caplog):
    settings = {"ranking_method": "generate", "rerank_candidates": 3}
    trainer, train, valid, test = trainer_of(tiny_run | settings)
    with caplog.at_level("INFO"):
        trainer.fit(train, valid)
        trainer.evaluate(test, load_best_model=False)
    assert "ranking_method: generate is not tuned" in caplog.text
    counts = trainer.model.ranker.counts
    assert counts.summary() in caplog.text and counts.lists > 0
    state = trainer.model.other_parameter()["adapter"]["state"]
    assert all((t == 0).all() for name, t in state.items() if "lora_B" in name)
    if counts.fallback == counts.lists:  # a random model writes no title
        assert trainer.report.llamarec == trainer.report.retriever


def test_metrics_of_each_user_stand_beside_the_checkpoint(trained):
    users = pd.read_csv(trained.checkpoint.with_suffix(".users.csv"), dtype={"user_id": str})
    assert users["user_id"].is_unique and len(users) == 39
    for name, value in trained.result["test_result"].items():
        assert users[f"llamarec_{name}"].mean() == pytest.approx(value, abs=1e-4)
    moved = users["retriever_rank"] != users["llamarec_rank"]
    assert moved.any() and (users.loc[moved, ["retriever_rank", "llamarec_rank"]] <= 8).all(None)


def test_rows_that_were_ranked_say_how_they_were_shown(tiny_run):
    """Where a metric depends on every item, they are all rows."""
    trainer, train, valid, test = trainer_of(
        tiny_run | {"metrics": ["Recall", "NDCG", "ItemCoverage"], "epochs": 0}
    )
    trainer.fit(train, valid)
    trainer.evaluate(test)
    users = trainer.report.users
    assert users["shown_first"].notna().all() and (users["target_shown"] == 8).any()
    trainer.skip_misses = True
    trainer.evaluate(test)
    missed = trainer.report.users["retriever_rank"] > 8
    assert missed.any() and (trainer.report.users["shown_first"].isna() == missed).all()


# --- fusion, candidates, losses ------------------------------------------------------------------


def test_the_weight_is_fitted_on_validation_and_saved(tiny_run, caplog, monkeypatch):
    settings = {"rerank_fusion": "auto", "rerank_label_prior_rows": 30, "evidence_items": 0}
    trainer, train, valid, test = trainer_of(tiny_run | settings)
    fitted = []

    def fit(retriever, ranker, places, evidence):
        assert evidence is None
        fitted.append((retriever, ranker, places))
        return Fusion(0.7, 0.1, 0.01, len(places))

    monkeypatch.setattr("recbole_llamarec.trainer.fit_fusion", fit)
    with caplog.at_level("INFO"):
        score, result = trainer.fit(train, valid)
        final = trainer.evaluate(test)
    assert "the ranker has weight 0.700" in caplog.text
    assert "Label prior on 30 rows" in caplog.text
    ((retriever, ranker, places),) = fitted
    assert retriever.shape == ranker.shape == (len(places), 8) and 0 < len(places) < 39
    assert (np.diff(retriever, axis=1) <= 0).all()  # in the retriever's order
    assert np.allclose(np.exp(ranker).sum(1), 1, atol=1e-4)
    # the validation result is the fused one: as RecBole's evaluator finds it
    with trainer.model.evaluating(rerank=True, skip_misses=True, show_progress=False):
        again = Trainer.evaluate(trainer, valid, load_best_model=False)
    assert result["ndcg@10"] == pytest.approx(again["ndcg@10"], abs=1e-4)
    assert score == result["ndcg@10"]
    users = trainer.report.users
    assert trainer.report.ranker["recall@10"] == pytest.approx(users["ranker_recall@10"].mean())
    assert "its ranker alone" in trainer.report.table()
    model = load_data_and_model(str(checkpoint_of(Path(tiny_run["checkpoint_dir"]))))[1]
    assert model.fusion_weight == 0.7
    assert torch.equal(model.ranker.label_prior, trainer.model.ranker.label_prior)
    trainer, _, _, test = trainer_of(tiny_run | {"rerank_fusion": "auto", "evidence_items": 0})
    trainer.model = model
    assert trainer.evaluate(test, load_best_model=False) == final


@pytest.mark.parametrize("method", ["verbalizer", "likelihood"])
@pytest.mark.parametrize("ranker_weight", [0.7, 0.0])
def test_evidence_is_fused_with_both_stages(tiny_run, caplog, monkeypatch, method, ranker_weight):
    """In evaluation, after loading, and for new histories; what it does alone stands beside it."""
    settings = {"ranking_method": method, "rerank_fusion": "auto", "evidence_items": 3}
    trainer, train, valid, test = trainer_of(tiny_run | settings)
    evidence_weight = 0.4 if ranker_weight else 0.5
    fusion = Fusion(ranker_weight, 0.1, 0.01, 30, EvidenceFusion(evidence_weight, 0.5, 0.2, 0.001))
    monkeypatch.setattr("recbole_llamarec.trainer.fit_fusion", lambda *stages: fusion)
    with caplog.at_level("INFO"):
        _, result = trainer.fit(train, valid)
        if not ranker_weight:
            monkeypatch.setattr(trainer.model.ranker, "rank", None)  # is not called
        final = trainer.evaluate(test)
    assert f"the evidence has weight {evidence_weight:.3f}" in caplog.text
    report = trainer.report
    assert "LRURec and evidence" in report.table() and "LRURec and evidence" in caplog.text
    assert report.evidence != pytest.approx(report.retriever, abs=1e-6)
    if not ranker_weight:
        assert final == pytest.approx(report.evidence, abs=1e-4)
    with trainer.model.evaluating(rerank=True, skip_misses=True, show_progress=False):
        again = Trainer.evaluate(trainer, valid, load_best_model=False)
    assert result["ndcg@10"] == pytest.approx(again["ndcg@10"], abs=1e-4)

    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    config, model, dataset, *_, test = load_data_and_model(str(checkpoint))
    model.eval()
    again = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert again.evaluate(test, load_best_model=False) == final
    interaction, *_ = next(iter(test))
    order = model.full_sort_predict(interaction).argsort(dim=1, descending=True)
    histories = [
        dataset.id2token(dataset.iid_field, row[:n].numpy()).tolist()
        for row, n in zip(interaction["item_id_list"], interaction["item_length"], strict=True)
    ]
    users = dataset.id2token(dataset.uid_field, interaction["user_id"].numpy()).tolist()
    found = Recommender(model, dataset).recommend(histories, 12, users)
    for row, result in zip(order, found, strict=True):
        assert [r.item for r in result] == dataset.id2token("item_id", row[:12].numpy()).tolist()
        assert all((r.score is not None) == (r.rank <= 8) for r in result)
        assert (result[0].probability is not None) == bool(ranker_weight)


def smoothed_shares(dataset, history: list[int], pool: list[int], window: int) -> np.ndarray:
    """By hand: for each item of a history, what followed it in training, joined by popularity."""
    rows = dataset.inter_feat
    columns = (rows[name] for name in ("user_id", "item_id", "item_id_list", "item_length"))
    sequences = training_sequences(*(column.numpy() for column in columns)).values()
    popularity = np.ones(dataset.item_num)
    np.add.at(popularity, np.concatenate(list(sequences)), 1)
    popularity /= popularity.sum()
    total = np.zeros(dataset.item_num)
    for item in history:
        counts = PRIOR_COUNT * popularity
        for own in sequences:
            for place in np.flatnonzero(own == item):
                for step, follower in enumerate(own[place + 1 :][:window], start=1):
                    counts[follower] += 1 / step
        total += counts / counts.sum()
    return total[pool] / len(history)


def test_the_evidences_scores_are_its_shares(tiny_run):
    """From what the evaluation notes: the retriever's log-probabilities and the shares."""
    settings = {"rerank_fusion": "auto", "evidence_items": 3, "evidence_window": 2, "epochs": 0}
    trainer, train, valid, _ = trainer_of(tiny_run | settings)
    trainer.fit(train, valid)
    model = trainer.model
    model.fusion_weight, model.evidence_weight = 0.0, 2.0
    with model.evaluating(rerank=True, skip_misses=False, show_progress=False) as noted:
        Trainer.evaluate(trainer, valid, load_best_model=False)
    (scores,), (pools,), (targets,) = noted.scores, noted.pools, noted.targets
    rows = valid.dataset.inter_feat
    for place in range(0, len(pools), 5):
        length = int(rows["item_length"][place])
        history = rows["item_id_list"][place, :length].tolist()
        shares = smoothed_shares(train.dataset, history[-3:], pools[place].tolist(), window=2)
        assert scores.evidence[place].numpy() == pytest.approx(np.log(shares))
        found = scores.retriever[place].log_softmax(0).double() + 2.0 * np.log(shares)
        if (pools[place] == targets[place, 1]).any():
            ahead = found > found[pools[place] == targets[place, 1]]
            assert int(noted.ranks[0][place]) == 1 + int(ahead.sum())
    assert scores.ranker is None and not noted.shown


def test_with_weight_0_the_order_is_the_retrievers(tiny_run):
    trainer, train, valid, test = trainer_of(tiny_run | {"rerank_fusion": 0})
    trainer.fit(train, valid)
    trainer.model.ranker.rank = None  # is not called
    assert trainer.evaluate(test) == trainer.report.retriever


def test_the_analysis_of_a_ranker_that_was_not_called(tiny_run):
    trainer, train, valid, test = trainer_of(tiny_run | {"rerank_fusion": 0})
    trainer.fit(train, valid)
    trainer.evaluate(test)
    text = describe(trainer.report.users, 8, 10)
    assert "By rank of the target" in text and "By place" not in text


def test_a_great_weight_leaves_the_ranker_in_charge(tiny_run):
    trainer, train, valid, test = trainer_of(tiny_run | {"rerank_fusion": 1e6})
    trainer.fit(train, valid)
    found = trainer.evaluate(test)
    assert found == pytest.approx(trainer.report.ranker, abs=1e-4)


def test_fusion_without_validation_data_is_left_out_with_a_warning(tiny_run, caplog):
    trainer, train, _, _ = trainer_of(tiny_run | {"rerank_fusion": "auto"})
    trainer.fit(train, None)
    assert "rerank_fusion: auto needs validation data" in caplog.text
    assert trainer.model.fusion_weight is None


@pytest.mark.parametrize("source", ["retriever", "mixed"])
def test_hard_candidates_are_the_retrievers_and_unseen(tiny_run, source):
    trainer, train, valid, _ = trainer_of(
        tiny_run | {"train_candidates": source, "train_candidates_from": 9}
    )
    model, inter = trainer.model, train.dataset.inter_feat
    rows = np.arange(0, len(inter), 5)
    pools = TuningSamples(model, train.dataset, seed=1).pools(rows, step=1)
    order = model.retrieve(inter[rows]).numpy()
    n_hard = 0
    for row, ranked, (candidates, label) in zip(rows, order, pools, strict=True):
        seen = model.seen.of(int(inter["user_id"][row]))
        target = int(inter["item_id"][row])
        assert candidates[label] == target
        negatives = set(candidates.tolist()) - {target}
        assert len(negatives) == 7 and not negatives & set(seen.tolist())
        n_hard += negatives <= set(ranked[:10].tolist())
    assert n_hard == len(rows) if source == "retriever" else 0 < n_hard < len(rows)
    trainer.fit(train, valid)


def test_hard_candidates_of_a_catalogue_that_is_smaller_than_their_depth(tiny_run):
    trainer, train, _, _ = trainer_of(
        tiny_run | {"train_candidates": "retriever", "train_candidates_from": 100}
    )
    pools = TuningSamples(trainer.model, train.dataset, seed=1).pools(np.arange(100), step=1)
    drawn = {item for candidates, _ in pools for item in candidates.tolist()}
    assert 0 not in drawn and len(drawn) > 50  # 60 items


def test_positions_that_share_a_history_are_samples_together(tiny_run, monkeypatch):
    steps = []
    trainer, train, valid, _ = trainer_of(tiny_run | {"train_positions": 4})
    plain = trainer_module.tuning_step

    def noted(ranker, histories, candidates, labels, *rest, **options):
        steps.append((histories, [pool[k] for pool, k in zip(candidates, labels, strict=True)]))
        return plain(ranker, histories, candidates, labels, *rest, **options)

    monkeypatch.setattr(trainer_module, "tuning_step", noted)
    trainer.fit(train, valid)
    assert sum(len(histories) for histories, _ in steps) == 16
    grown = 0
    for histories, targets in steps:
        for i, (shorter, longer) in enumerate(zip(histories, histories[1:], strict=False)):
            grown += longer == [*shorter, targets[i]]
    assert grown >= 8  # of 16 samples in blocks of at most 4


@pytest.mark.parametrize("loss", ["ranknet", "next_token"])
def test_other_losses_tune(tiny_run, loss):
    trainer, train, valid, test = trainer_of(tiny_run | {"train_loss": loss})
    trainer.fit(train, valid)
    state = trainer.model.other_parameter()["adapter"]["state"]
    assert any((t != 0).any() for name, t in state.items() if "lora_B" in name)


def test_shuffled_candidates_repeat_and_differ_by_user(tiny_run):
    trainer, *_ = trainer_of(tiny_run | {"rerank_order": "shuffle"})
    orders = [trainer.model._shown_order(torch.tensor([3, 4]), 8) for _ in range(2)]
    assert torch.equal(*orders)
    assert not torch.equal(orders[0][0], orders[0][1])
    assert (orders[0].sort(1).values == torch.arange(8)).all()
    trainer, *_ = trainer_of(tiny_run)
    assert trainer.model._shown_order(torch.tensor([3]), 8).tolist() == [[*range(8)]]


# --- RecBole's own entry points ------------------------------------------------------------------


def test_recbole_finds_models_and_trainers_by_name():
    assert get_model("LlamaRec") is LlamaRec and get_model("LRURec") is LRURec
    assert get_trainer(None, "LlamaRec").__name__ == "LlamaRecTrainer"
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


@pytest.mark.parametrize("script", ["run_recbole.py", "-m"])
def test_two_processes_train_and_evaluate(tiny_run, script):
    """Started as a script and as a module, whose workers import different main modules."""
    import yaml

    Path("run.yaml").write_text(yaml.safe_dump({k: v for k, v in tiny_run.items() if k != "model"}))
    start = [str(ROOT / script)] if script.endswith(".py") else ["-m", "recbole_llamarec"]
    port = "--port=29511" if script == "-m" else "--port=29512"
    done = subprocess.run(
        [sys.executable, *start, "--model=LlamaRec", "--dataset=tiny", "--config_files=run.yaml",
         "--nproc=2", port, "--epochs=1"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(OMP_NUM_THREADS="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test result" in done.stderr and "LlamaRec, retrieved" in done.stderr
    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    assert len([*checkpoint.parent.glob("*.html")]) == 1  # of the first process
    model = load_data_and_model(str(checkpoint))[1]  # also usable in one process
    assert model.is_ranker_attached
