from __future__ import annotations

import pytest
import yaml
from helpers import ROOT

from recbole_llamarec.integration.known import properties_file
from recbole_llamarec.ranking.generation import GENERATE_INSTRUCTION
from recbole_llamarec.settings import LlamaRecSettings, llamarec_keys, report_unknown_keys

RECBOLE_KEYS = {
    *("epochs", "train_batch_size", "learner", "learning_rate", "weight_decay", "clip_grad_norm"),
    *("stopping_step", "train_neg_sample_args", "valid_metric"),
}


class Values(dict):
    """A config of LlamaRec's defaults: missing keys read as None, as in RecBole."""

    def __getitem__(self, key):
        return self.get(key)


def defaults(**changes) -> Values:
    """LlamaRec's defaults with the paper's ranker, which most errors are about."""
    files = properties_file("model", "LlamaRec"), ROOT / "properties" / "paper.yaml"
    values = Values()
    for file in files:
        values.update(yaml.safe_load(file.read_text()))
    values["eval_args"] = {"mode": {"valid": "full", "test": "full"}}
    values.update(llm_name_or_path="org/a-model-on-the-hub")
    return Values(values | changes)


def test_the_property_file_names_exactly_the_keys_of_the_code():
    keys = set(yaml.safe_load(properties_file("model", "LlamaRec").read_text()))
    assert keys - RECBOLE_KEYS == set(llamarec_keys())


def test_the_papers_ranker_is_the_papers():
    settings = LlamaRecSettings.from_config(defaults())
    assert settings.rerank_candidates == 20
    assert settings.verbalizer_labels == tuple("ABCDEFGHIJKLMNOPQRST")
    assert (settings.lora.r, settings.lora.alpha, settings.lora.dropout) == (8, 32, 0.05)
    assert settings.lora.target_modules == ("q_proj", "v_proj")
    assert (settings.prompt_max_history, settings.prompt_max_title_tokens) == (20, 32)
    assert settings.retriever == "LRURec"
    assert settings.generate_instruction == GENERATE_INSTRUCTION
    assert defaults()["learning_rate"] in (1e-4, "1e-4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rerank_candidates": 1}, ["rerank_candidates", "1", "at least 2"]),
        ({"rerank_candidates": "20"}, ["rerank_candidates", "'20'"]),
        ({"rerank_candidates": True}, ["rerank_candidates"]),
        ({"rerank_candidates": 53}, ["verbalizer_labels"]),
        ({"verbalizer_labels": ["A", "B"]}, ["rerank_candidates: 20", "verbalizer_labels", "2"]),
        ({"verbalizer_labels": ["A", "A"]}, ["verbalizer_labels", "distinct"]),
        ({"rerank_mask_seen": "yes"}, ["rerank_mask_seen", "True or False"]),
        ({"item_text_missing": "keep"}, ["item_text_missing", "drop or fallback"]),
        ({"item_text_format": "{"}, ["item_text_format"]),
        ({"item_text_format": ""}, ["item_text_format"]),
        ({"retriever_config": [1]}, ["retriever_config", "mapping"]),
        ({"prompt_text": "{history} {candidates} {user}"}, ["prompt_text", "user"]),
        ({"prompt_text": "{history}"}, ["prompt_text", "candidates"]),
        ({"prompt_history_item": "{nr} {title}"}, ["prompt_history_item", "nr"]),
        ({"prompt_response": "the"}, ["prompt_response"]),
        ({"llm_dtype": "int3"}, ["llm_dtype", "int3"]),
        ({"llm_name_or_path": "/no/such/place"}, ["llm_name_or_path", "/no/such/place"]),
        ({"llm_name_or_path": "./none.gguf"}, ["llm_name_or_path", "./none.gguf"]),
        ({"lora_r": 0}, ["lora_r"]),
        ({"lora_dropout": 1.0}, ["lora_dropout"]),
        ({"train_max_samples": -1}, ["train_max_samples"]),
        ({"llm_batch_tokens": 0}, ["llm_batch_tokens"]),
        (
            {"valid_metric": "MRR@10", "metrics": ["NDCG"], "topk": [10]},
            ["valid_metric", "NDCG@10"],
        ),
        ({"evidence_items": -1}, ["evidence_items: -1"]),
        ({"evidence_window": 0}, ["evidence_window: 0"]),
        ({"train_loss": "titles"}, ["train_loss", "likelihood"]),
        ({"train_loss": "evidence"}, ["train_loss", "likelihood"]),
        (
            {"ranking_method": "likelihood", "train_loss": "evidence", "evidence_items": 0},
            ["train_loss", "evidence_items"],
        ),
        (
            {"ranking_method": "likelihood", "train_loss": "evidence"},
            ["train_loss", "evidence_use: prompt"],
        ),
        ({"evidence_use": "letters"}, ["evidence_use: 'letters'", "fusion or prompt"]),
        ({"ranking_method": "likelihood", "train_loss": "ranknet"}, ["train_loss", "titles"]),
        ({"ranking_method": "likelihood", "rerank_permutations": 2}, ["rerank_permutations: 2"]),
        ({"likelihood_temperature": 0}, ["likelihood_temperature", "above 0"]),
        ({"eval_args": {"mode": {"valid": "uni100", "test": "full"}}}, ["eval_args", "full"]),
    ],
)
def test_wrong_values_name_key_value_and_remedy(changes, words):
    with pytest.raises(ValueError) as error:
        LlamaRecSettings.from_config(defaults(**changes))
    for word in words:
        assert word in str(error.value)


def test_all_errors_are_reported_together():
    with pytest.raises(ValueError) as error:
        LlamaRecSettings.from_config(defaults(rerank_candidates=1, lora_r=0, llm_dtype="x"))
    for key in ("rerank_candidates", "lora_r", "llm_dtype"):
        assert key in str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lora_rank", "lora_r"),
        ("rerank_candidate", "rerank_candidates"),
        ("retreiver", "retriever"),
        ("llm_name_or_pth", "llm_name_or_path"),
        ("prompt_maximum_history", "prompt_max_history"),
        ("train_max_sample", "train_max_samples"),
    ],
)
def test_misspelt_keys_name_the_nearest(key, nearest):
    with pytest.raises(ValueError, match=f"{key}.*'{nearest}'"):
        report_unknown_keys([key], known=["epochs"])


def test_keys_of_recbole_and_others_pass():
    assert report_unknown_keys(["epochs", "lora_r"], known=["epochs"]) == []
    assert report_unknown_keys(["my_note"], known=["epochs"]) == ["my_note"]
