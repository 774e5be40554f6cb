"""The RecBole model: scores, candidates, masking, skipping, checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from helpers import environment
from peft import PeftModel
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model, get_trainer
from recbole.utils.case_study import full_sort_topk

from recbole_llamarec.ranking.batching import pad_right
from recbole_llamarec.ranking.language_model import (
    LanguageModelSettings,
    last_hidden,
    load_language_model,
)
from recbole_llamarec.retrieval.retriever import masking_seen


@pytest.fixture
def loaded(trained, workdir):
    """Config, model and test loader of the finished run, read from its checkpoint."""
    config, model, _, _, _, test = load_data_and_model(str(trained.checkpoint))
    return config, model.eval(), test


def batch_of(loader):
    interaction, _, _, targets = next(iter(loader))
    return interaction, targets


def order_of(scores: torch.Tensor) -> torch.Tensor:
    return scores.argsort(dim=1, descending=True)


def test_scores_put_the_ranked_candidates_first_and_keep_the_rest(loaded):
    _, model, test = loaded
    interaction, _ = batch_of(test)
    scores = model.full_sort_predict(interaction)
    assert scores.dtype == torch.float32 and scores.is_contiguous() and not scores.is_inference()
    assert not scores.isnan().any()
    assert all(len(set(row)) == model.n_items for row in scores.tolist())

    retrieved, final = model.retrieve(interaction), order_of(scores)
    assert torch.equal(final[:, 8:], retrieved[:, 8:])
    histories = [
        row[:n]
        for row, n in zip(
            interaction["item_id_list"].tolist(), interaction["item_length"].tolist(), strict=True
        )
    ]
    probabilities = model.ranker.rank(histories, retrieved[:, :8].tolist())
    expected = retrieved[:, :8].gather(1, probabilities.argsort(dim=1, descending=True))
    assert torch.equal(final[:, :8], expected)
    assert (final[:, -1] == 0).all()  # the padding item


def test_seen_items_stand_behind_all_others(loaded, trained):
    _, model, test = loaded
    interaction, _ = batch_of(test)
    dataset = test.dataset
    final = order_of(model.full_sort_predict(interaction))
    lines = (dataset.dataset_path, "tiny.inter")
    seen: dict[str, list[str]] = {}
    with open("/".join(lines)) as file:
        for line in list(file)[1:]:
            user, item, _ = line.split("\t")
            seen.setdefault(user, []).append(item)
    for row, user in enumerate(dataset.id2token("user_id", interaction["user_id"].numpy())):
        before_test = seen[user][:-1]
        last = final[row, -1 - len(before_test) : -1]
        assert set(dataset.id2token("item_id", last.numpy())) == set(before_test)


def test_masking_can_be_turned_off(tiny_run):
    model, test = fresh(tiny_run | {"rerank_mask_seen": False})
    interaction, _ = batch_of(test)
    scores = model.retriever.full_sort_predict(interaction)
    expected = scores[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
    assert torch.equal(model.retrieve(interaction)[:, :-1], expected)


def fresh(settings):
    """An untrained model and its test loader."""
    config = Config(config_dict=dict(settings))
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    return get_model("LlamaRec")(config, train.dataset).eval(), test


def test_a_fresh_model_scores_as_its_retriever(tiny_run):
    model, test = fresh(tiny_run)
    interaction, _ = batch_of(test)
    assert not model.is_ranker_attached
    assert torch.equal(order_of(model.full_sort_predict(interaction)), model.retrieve(interaction))
    assert not model.is_ranker_attached  # nothing was loaded for it
    kept = model.other_parameter()
    assert kept.pop("evidence_weights") == [0.0, 0.0] and set(kept.values()) == {None}
    with pytest.raises(RuntimeError, match="LlamaRecTrainer"):
        model.calculate_loss(interaction)


def test_the_prompt_never_sees_the_target(loaded):
    _, model, test = loaded
    interaction, _ = batch_of(test)
    expected = model.full_sort_predict(interaction)
    prompts = recorded_prompts(model, interaction)
    interaction.interaction["item_id"] = torch.full_like(interaction["item_id"], 1)
    for field in ("title", "timestamp"):
        if field in interaction:
            interaction.interaction[field] = torch.zeros_like(interaction[field])
    assert torch.equal(model.full_sort_predict(interaction), expected)
    assert recorded_prompts(model, interaction) == prompts


def recorded_prompts(model, interaction) -> list[tuple]:
    """What the prompt builder is asked for."""
    asked, encode = [], model.ranker.prompts.encode
    model.ranker.prompts.encode = lambda h, c: asked.append((tuple(h), tuple(c))) or encode(h, c)
    try:
        model.full_sort_predict(interaction)
    finally:
        del model.ranker.prompts.encode
    return asked


def test_skipping_rows_asks_for_fewer_prompts_and_changes_no_metric(trained, workdir):
    results, prompts = [], []
    for skip in (True, False):
        config, model, _, _, _, test = load_data_and_model(str(trained.checkpoint))
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.skip_misses = skip
        rank, asked = model.ranker.rank, []
        model.ranker.rank = lambda h, c, p, rank=rank, a=asked: a.extend(h) or rank(h, c, p)
        results.append(dict(trainer.evaluate(test, load_best_model=False)))
        prompts.append(len(asked))
        report = trainer.report
    assert results[0] == results[1]
    assert prompts == [report.n_retrieved, report.n_rows]
    assert report.n_retrieved < report.n_rows


def test_every_row_is_ranked_for_metrics_of_coverage(trained, workdir):
    config, model, _, _, _, test = load_data_and_model(str(trained.checkpoint))
    config["metrics"] = ["NDCG", "ItemCoverage", "GiniIndex", "AveragePopularity"]
    train = load_data_and_model(str(trained.checkpoint))[3]
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert not trainer.skip_misses
    trainer.eval_collector.data_collect(train)
    result = trainer.evaluate(test, load_best_model=False)
    assert 0 < result["itemcoverage@10"] <= 1
    assert trainer.report.llamarec_on_retrieved["itemcoverage@10"] > 0


def test_metrics_equal_those_computed_by_hand(loaded, trained):
    config, model, test = loaded
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    result = trainer.evaluate(test, load_best_model=False)
    interaction, targets = batch_of(test)
    final = order_of(model.full_sort_predict(interaction))
    retrieved = model.retrieve(interaction)
    in_pool = (retrieved[:, :8] == targets[:, None]).any(1)

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
    assert report.retriever == pytest.approx(metrics(retrieved, everything), abs=1e-4)
    assert report.llamarec_on_retrieved == pytest.approx(metrics(final, in_pool), abs=1e-4)
    assert report.retriever_on_retrieved == pytest.approx(metrics(retrieved, in_pool), abs=1e-4)
    assert (report.n_rows, report.n_retrieved) == (len(targets), int(in_pool.sum()))
    assert report.ceiling == pytest.approx(in_pool.float().mean().item())
    for words in ("LRURec", "LlamaRec, retrieved", "masked", "Recall@8"):
        assert words in report.table()


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
    _, model, test = loaded
    interaction, _ = batch_of(test)

    def fail(*_, **__):
        raise NotImplementedError("a kernel")

    monkeypatch.setattr(model.retriever, "full_sort_predict", fail)
    with pytest.raises(RuntimeError, match="a kernel"):
        model.full_sort_predict(interaction)


# --- checkpoints --------------------------------------------------------------------------------

RELOAD = """
import json, sys
import recbole_llamarec
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
config, model, _, _, _, test = load_data_and_model(sys.argv[1])
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
result = trainer.evaluate(test, load_best_model=False)
print("RESULT", json.dumps({key: float(value) for key, value in result.items()}))
"""


def test_a_new_process_gives_the_same_test_metrics(trained, workdir):
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(trained.checkpoint)],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    assert json.loads(line.removeprefix("RESULT")) == dict(trained.result["test_result"])


def test_the_checkpoint_has_no_base_weights(trained):
    from recbole_llamarec.integration.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(trained.checkpoint)
    assert all(key.startswith("retriever.") for key in checkpoint["state_dict"])
    assert set(checkpoint["other_parameter"]) == {
        *("adapter", "fusion_weight", "evidence_weights", "label_prior"),
    }
    assert trained.checkpoint.stat().st_size < 2_000_000


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
    input_ids, lengths = pad_right([[5, 6, 7], [8, 9]], torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(
            last_hidden(other, input_ids, lengths),
            last_hidden(model.ranker.model.eval(), input_ids, lengths),
        )


def test_a_trained_adapter_differs_from_a_fresh_one(trained):
    from recbole_llamarec.integration.checkpoints import load_checkpoint

    state = load_checkpoint(trained.checkpoint)["other_parameter"]["adapter"]["state"]
    assert any(tensor.abs().max() > 0 for name, tensor in state.items() if "lora_B" in name)


def test_the_same_seed_gives_the_same_run(trained, tiny_run):
    from recbole.quick_start import run_recbole

    again = run_recbole(config_dict=tiny_run)
    assert again["test_result"] == trained.result["test_result"]
    assert again["best_valid_result"] == trained.result["best_valid_result"]


def test_recboles_own_evaluation_with_seen_items_masked_is_the_retrievers_row(loaded):
    """The retriever's validation masks by -inf what LlamaRec's passes rank last: equal metrics."""
    from recbole.trainer import Trainer

    config, model, test = loaded
    trainer = get_trainer(config["MODEL_TYPE"], "LlamaRec")(config, model)
    with model.evaluating(rerank=False, skip_misses=True, show_progress=False):
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
