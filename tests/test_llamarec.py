"""The RecBole model: scores, candidates, masking, skipping, checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import environment
from peft import PeftModel
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import Trainer
from recbole.utils import get_trainer
from recbole.utils.case_study import full_sort_topk
from runs import batch_of, is_tuned, order_of, run_of, untrained

from recbole_llamarec.files import save_tensors
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.ranking.model.forward import Padded
from recbole_llamarec.ranking.model.loading import LanguageModelSettings, load_language_model
from recbole_llamarec.retrieval.retriever import masking_seen
from recbole_llamarec.scoring.fusion import Fusion

K = 8


@pytest.fixture
def loaded(trained, workdir):
    """Config, model and test loader of the finished run, read from its checkpoint."""
    config, model, _, _, _, test = load_data_and_model(str(trained.checkpoint), trained.data_path)
    return config, model.eval(), test


def trainer_of(config, model):
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def all_rows(interaction) -> torch.Tensor:
    return torch.arange(len(interaction))


# --- scores --------------------------------------------------------------------------------------


def test_scores_put_the_ranked_candidates_first_and_keep_the_rest(loaded):
    _, model, test = loaded
    interaction, _ = batch_of(test)
    scores = model.full_sort_predict(interaction)
    assert scores.dtype == torch.float32 and scores.is_contiguous() and not scores.is_inference()
    assert not scores.isnan().any()
    assert all(len(set(row)) == model.n_items for row in scores.tolist())

    proposed, final = model.propose(interaction), order_of(scores)
    assert torch.equal(proposed.items, proposed.order[:, :K])
    assert torch.equal(final[:, K:], proposed.order[:, K:])
    rows = model.rows_of(interaction, all_rows(interaction))
    opinion = model.scorers["verbalizer"].scores(rows, proposed.items)
    expected = proposed.items.gather(1, opinion.argsort(dim=1, descending=True))
    assert torch.equal(final[:, :K], expected)
    assert not torch.equal(final[:, :K], proposed.items)
    assert (final[:, -1] == 0).all()  # the padding item


@pytest.mark.parametrize("weight", [0.0, 0.7, 1e6])
def test_the_final_order_is_that_of_the_fused_scores(loaded, weight):
    _, model, test = loaded
    model.fusion = Fusion.from_setting(weight, ["verbalizer"])
    interaction, _ = batch_of(test)
    proposed = model.propose(interaction)
    rows = model.rows_of(interaction, all_rows(interaction))
    opinion = model.scorers["verbalizer"].scores(rows, proposed.items).double()
    fused = proposed.scores.double().log_softmax(1) + weight * opinion
    expected = proposed.items.gather(1, fused.argsort(dim=1, descending=True, stable=True))
    assert torch.equal(order_of(model.full_sort_predict(interaction))[:, :K], expected)


def test_a_scorer_with_weight_0_is_not_asked_but_for_a_table(loaded):
    _, model, test = loaded
    model.fusion = Fusion.from_setting(0, ["verbalizer"])
    interaction, _ = batch_of(test)
    asked, scorer = [], model.scorers["verbalizer"]
    scores = scorer.scores
    scorer.scores = lambda rows, items: asked.append(len(items)) or scores(rows, items)
    order = order_of(model.full_sort_predict(interaction))
    assert asked == [] and torch.equal(order, model.propose(interaction).order)
    with model.evaluating(rerank=True, all_scorers=True):
        assert torch.equal(order_of(model.full_sort_predict(interaction)), order)
    assert asked == [len(interaction)]


def test_predict_agrees_with_full_sort_predict(loaded):
    _, model, test = loaded
    interaction, targets = batch_of(test)
    scores = model.full_sort_predict(interaction)
    expected = scores.gather(1, targets[:, None]).squeeze(1)
    assert torch.equal(model.predict(interaction), expected)


def test_full_sort_topk_accepts_the_model(loaded):
    _, model, test = loaded
    users = test.dataset.inter_feat["user_id"][:3].numpy()
    scores, items = full_sort_topk(users, model, test, k=10)
    assert items.shape == (3, 10) and (scores[:, :-1] > scores[:, 1:]).all()


def test_not_implemented_is_not_swallowed(loaded, monkeypatch):
    """RecBole would take it for a model that scores item by item."""
    _, model, test = loaded
    interaction, _ = batch_of(test)

    def fail(*_, **__):
        raise NotImplementedError("a kernel")

    monkeypatch.setattr(model.retriever, "full_sort_predict", fail)
    with pytest.raises(RuntimeError, match="a kernel"):
        model.full_sort_predict(interaction)


def test_a_fresh_model_scores_as_its_retriever_and_loads_no_language_model(tiny_run, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.scoring.language_model.load_language_model", None)
    run = run_of(tiny_run)
    model = run.model.eval()
    interaction, _ = batch_of(run.test)
    order = order_of(model.full_sort_predict(interaction))
    assert torch.equal(order, model.propose(interaction).order)
    kept = model.other_parameter()
    assert kept == {"fusion": Fusion(None).state(), "scorers": {"verbalizer": {}}}
    with pytest.raises(RuntimeError, match="LlamaRecTrainer"):
        model.calculate_loss(interaction)


def test_no_scorer_sees_the_target(loaded):
    _, model, test = loaded
    interaction, _ = batch_of(test)
    expected = model.full_sort_predict(interaction)
    prompts = recorded_prompts(model, interaction)
    assert len(prompts) == len(interaction)
    interaction.interaction["item_id"] = torch.full_like(interaction["item_id"], 1)
    for field in ("title", "timestamp"):
        if field in interaction:
            interaction.interaction[field] = torch.zeros_like(interaction[field])
    assert torch.equal(model.full_sort_predict(interaction), expected)
    assert recorded_prompts(model, interaction) == prompts


def recorded_prompts(model, interaction) -> list[tuple]:
    """What the ranker is asked to encode."""
    ranker = model.scorers["verbalizer"].ranker
    asked, encode = [], ranker.encode
    ranker.encode = lambda h, c: asked.append((tuple(h), tuple(c))) or encode(h, c)
    try:
        model.full_sort_predict(interaction)
    finally:
        del ranker.encode
    return asked


# --- seen items ----------------------------------------------------------------------------------


def test_seen_items_stand_behind_all_others(loaded):
    _, model, test = loaded
    interaction, _ = batch_of(test)
    dataset = test.dataset
    final = order_of(model.full_sort_predict(interaction))
    seen: dict[str, list[str]] = {}
    with open(f"{dataset.dataset_path}/tiny.inter") as file:
        for line in list(file)[1:]:
            user, item, _ = line.split("\t")
            seen.setdefault(user, []).append(item)
    for row, user in enumerate(dataset.id2token("user_id", interaction["user_id"].numpy())):
        before_test = seen[user][:-1]
        last = final[row, -1 - len(before_test) : -1]
        assert set(dataset.id2token("item_id", last.numpy())) == set(before_test)


def test_masking_can_be_turned_off(tiny_run):
    run = run_of(tiny_run, rerank_mask_seen=False)
    interaction, _ = batch_of(run.test)
    model = run.model.eval()
    scores = model.retriever.full_sort_predict(interaction)
    expected = scores[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
    assert torch.equal(model.propose(interaction).order[:, :-1], expected)


def test_only_items_of_the_retrievers_window_may_be_masked(tiny_run):
    run = run_of(tiny_run, rerank_mask_seen="window", MAX_ITEM_LIST_LENGTH=3)
    interaction, _ = batch_of(run.test)
    order = run.model.eval().propose(interaction).order
    windows = interaction["item_id_list"]
    assert windows.shape[1] == 3
    for row, window in zip(order.tolist(), windows.tolist(), strict=True):
        assert set(row[-4:-1]) == set(window)
    run = run_of(tiny_run, rerank_mask_seen=True, MAX_ITEM_LIST_LENGTH=3)
    order = run.model.eval().propose(interaction).order
    most = max(len(run.model.seen.of(int(user))) for user in interaction["user_id"])
    assert most > 4 and not torch.equal(order[:, -4:-1].sort().values, windows.sort().values)


# --- evaluation ----------------------------------------------------------------------------------


def test_skipping_rows_asks_for_fewer_prompts_and_changes_no_metric(trained, workdir):
    results, prompts = [], []
    for skip in (True, False):
        config, model, _, _, _, test = load_data_and_model(
            str(trained.checkpoint), trained.data_path
        )
        trainer = trainer_of(config, model)
        trainer.skip_misses = skip
        scorer, asked = model.scorers["verbalizer"], []
        score = scorer.scores
        scorer.scores = lambda r, i, score=score, a=asked: a.append(len(i)) or score(r, i)
        results.append(dict(trainer.evaluate(test, load_best_model=False)))
        prompts.append(sum(asked))
        report = trainer.report
    assert results[0] == results[1]
    assert prompts == [report.n_retrieved, report.n_rows]
    assert report.n_retrieved < report.n_rows


def test_every_row_is_ranked_for_metrics_of_coverage(trained, workdir):
    config, model, _, train, _, test = load_data_and_model(
        str(trained.checkpoint), trained.data_path
    )
    config["metrics"] = ["NDCG", "ItemCoverage", "GiniIndex", "AveragePopularity"]
    trainer = trainer_of(config, model)
    assert not trainer.skip_misses
    trainer.eval_collector.data_collect(train)
    result = trainer.evaluate(test, load_best_model=False)
    assert 0 < result["itemcoverage@10"] <= 1
    assert trainer.report.final.metrics["itemcoverage@10"] == result["itemcoverage@10"]
    assert trainer.report.retriever.metrics["itemcoverage@10"] > 0
    assert trainer.report.users["first:verbalizer"].notna().all()


def test_metrics_equal_those_computed_by_hand(loaded):
    config, model, test = loaded
    trainer = trainer_of(config, model)
    result = trainer.evaluate(test, load_best_model=False)
    interaction, targets = batch_of(test)
    final = order_of(model.full_sort_predict(interaction))
    proposed = model.propose(interaction)
    in_pool = (proposed.items == targets[:, None]).any(1)

    def metrics(order, rows):
        ranks = (order == targets[:, None]).int().argmax(1)[rows] + 1.0
        return {
            f"{name}@{k}": float(torch.where(ranks <= k, value(ranks), 0.0).mean())
            for k in (5, 10)
            for name, value in {
                "recall": torch.ones_like,
                "mrr": lambda r: 1 / r,
                "ndcg": lambda r: 1 / torch.log2(r + 1),
            }.items()
        }

    everything = torch.ones_like(in_pool)
    report = trainer.report
    assert result == pytest.approx(metrics(final, everything), abs=1e-4)
    by_name = {stage.name: stage.metrics for stage in report.stages}
    assert list(by_name) == ["LRURec", "verbalizer", "final: verbalizer"]
    assert by_name["LRURec"] == pytest.approx(metrics(proposed.order, everything), abs=1e-4)
    assert by_name["verbalizer"] == pytest.approx(metrics(final, everything), abs=1e-6)
    assert by_name["final: verbalizer"] == result
    retrieved = {stage.name: stage.metrics for stage in report.retrieved_stages()}
    assert retrieved["final: verbalizer"] == pytest.approx(metrics(final, in_pool), abs=1e-6)
    assert retrieved["LRURec"] == pytest.approx(metrics(proposed.order, in_pool), abs=1e-6)
    assert (report.n_rows, report.n_retrieved) == (len(targets), int(in_pool.sum()))
    assert report.ceiling == pytest.approx(in_pool.float().mean().item())


def test_recboles_own_evaluation_with_seen_items_masked_is_the_retrievers_row(loaded):
    """The retriever's validation masks by -inf what LlamaRec's passes rank last: equal metrics."""
    config, model, test = loaded
    trainer = trainer_of(config, model)
    with model.evaluating(rerank=False):
        ours = Trainer.evaluate(trainer, test, load_best_model=False)
    plain = Trainer(model.retriever_config, model.retriever)
    plain.eval_collector = trainer.eval_collector
    unmasked = plain.evaluate(test, load_best_model=False)
    with masking_seen(model.retriever, model.seen):
        assert plain.evaluate(test, load_best_model=False) == ours
    assert plain.evaluate(test, load_best_model=False) == unmasked != ours
    with pytest.raises(ZeroDivisionError), masking_seen(model.retriever, model.seen):
        raise ZeroDivisionError
    assert "full_sort_predict" not in vars(model.retriever)


def test_a_pass_records_what_each_stage_said(tiny_run):
    """The evidence's scores, which fusion adds to the retriever's log-probabilities."""
    settings = {"rerank_fusion": "auto", "evidence_items": 3, "ranking_method": "none"}
    run = run_of(tiny_run, **settings)
    model = run.model.eval()
    model.fusion = Fusion({"evidence": 2.0})
    interaction, targets = batch_of(run.valid)
    with model.evaluating(rerank=True) as current:
        final = order_of(model.full_sort_predict(interaction))
    records = current.records(K, ["evidence"])
    proposed = model.propose(interaction)
    assert np.array_equal(records.ranked["items"], proposed.items.numpy())
    assert np.array_equal(records.rows["targets"], targets.numpy())
    rows = model.rows_of(interaction, all_rows(interaction))
    evidence = model.scorers["evidence"].scores(rows, proposed.items)
    assert np.array_equal(records.opinions["evidence"], evidence.numpy())
    ranks = 1 + (final == targets[:, None]).int().argmax(1)
    assert np.array_equal(records.ranks_by(model.fusion.final("LRURec")), ranks.numpy())


# --- checkpoints --------------------------------------------------------------------------------

RELOAD = """
import json, sys
import recbole_llamarec
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
config, model, _, _, _, test = load_data_and_model(sys.argv[1], sys.argv[2])
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
result = trainer.evaluate(test, load_best_model=False)
print("RESULT", json.dumps({key: float(value) for key, value in result.items()}))
"""


@pytest.mark.slow
def test_a_new_process_gives_the_same_test_metrics(trained, workdir):
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(trained.checkpoint), trained.data_path],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    assert json.loads(line.removeprefix("RESULT")) == dict(trained.result["test_result"])


def test_the_checkpoint_has_no_base_weights(trained):
    checkpoint = load_checkpoint(trained.checkpoint)
    assert all(key.startswith("retriever.") for key in checkpoint["state_dict"])
    other = checkpoint["other_parameter"]
    assert set(other) == {"fusion", "scorers"}
    assert set(other["scorers"]["verbalizer"]) == {"lora", "adapter"}
    assert trained.checkpoint.stat().st_size < 2_000_000


def test_a_checkpoint_of_version_0_1_is_refused_with_what_can_be_done(trained, workdir, tmp_path):
    """Its other parameters stood side by side; a retriever's and an adapter's file can be used."""
    checkpoint = load_checkpoint(trained.checkpoint)
    old = checkpoint["other_parameter"]["scorers"]["verbalizer"]
    checkpoint["other_parameter"] = {
        "adapter": {"config": old["lora"], "state": old["adapter"]},
        "fusion_weight": 0.7,
        "evidence_weights": [0.0, 0.0],
        "label_prior": None,
    }
    file = tmp_path / "old.pth"
    torch.save(checkpoint, file, pickle_protocol=4)
    with pytest.raises(ValueError, match=r"recbole-llamarec 0\.1") as raised:
        load_data_and_model(str(file), trained.data_path)
    for words in ("retriever_checkpoint", "LRURec.pth", "lora_adapter", ".adapter"):
        assert words in str(raised.value)


def test_a_checkpoint_of_a_run_that_did_not_come_to_its_fusion_is_loaded_with_a_warning(
    trained, workdir, caplog
):
    checkpoint = load_checkpoint(trained.checkpoint)
    assert checkpoint["finished"] is True
    load_data_and_model(str(trained.checkpoint), trained.data_path)
    assert "interrupted" not in caplog.text
    save_tensors({**checkpoint, "finished": False}, workdir / "early.pth")
    load_data_and_model(str(workdir / "early.pth"), trained.data_path)
    assert "early.pth' was interrupted before its fusion was set" in caplog.text


def test_a_checkpoint_without_other_parameters_is_the_retriever_alone(tiny_run):
    model = untrained(tiny_run)
    for nothing in (None, {}):
        model.load_other_parameter(nothing)
    assert model.fusion == Fusion(None)


def test_the_adapter_directory_loads_with_peft(trained, loaded, tiny_llama):
    _, model, _ = loaded
    directory = trained.checkpoint.with_suffix(".adapter")
    assert {file.name for file in directory.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    settings = LanguageModelSettings(name_or_path=str(tiny_llama), dtype="float32")
    base, _ = load_language_model(settings, torch.device("cpu"))
    other = PeftModel.from_pretrained(base, str(directory)).eval()
    contexts, places = [[5, 6, 7], [8, 9]], [[[2]], [[1]]]
    ours = model.scorers["verbalizer"].ranker.model.eval()
    with torch.no_grad():
        one, two = (Padded(m).hidden_at(contexts, [[[]], [[]]], places) for m in (ours, other))
    assert torch.equal(one, two)


def test_a_trained_adapter_differs_from_a_fresh_one(trained):
    state = load_checkpoint(trained.checkpoint)["other_parameter"]["scorers"]["verbalizer"]
    assert is_tuned(state["adapter"])


def test_the_same_seed_gives_the_same_run(trained, tiny_run):
    again = run_recbole(config_dict=tiny_run)
    assert again["test_result"] == trained.result["test_result"]
    assert again["best_valid_result"] == trained.result["best_valid_result"]
