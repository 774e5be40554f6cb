"""The warm start's command, and the adapter that ships with the package."""

from __future__ import annotations

import hashlib
import json

import pytest
from recbole.config import Config
from recbole.data import create_dataset
from recbole.quick_start import run_recbole

from recbole_llamarec import warm_start
from recbole_llamarec.llamarec import DEFAULT_ADAPTER


def test_the_command_makes_an_adapter_that_a_run_starts_from(tiny_run, monkeypatch, workdir):
    import yaml

    settings = {k: v for k, v in tiny_run.items() if k not in ("model", "dataset")}
    (workdir / "run.yaml").write_text(yaml.safe_dump(settings | {"rerank_candidates": 20}))
    warm_start.main(
        ["--datasets", "tiny", "tiny", "--config_files", "run.yaml", "--steps=3", "--out=warm"]
    )
    record = json.loads((workdir / "warm" / "warm_start.json").read_text())
    assert record["steps"] == len(record["candidates_and_loss"]) == 3
    assert record["titles"] == 2 * 60
    assert (workdir / "warm" / "adapter_model.safetensors").is_file()
    result = run_recbole(config_dict=tiny_run | {"lora_adapter": str(workdir / "warm")})
    assert result["test_result"]


def test_the_default_adapter_is_for_the_embedded_model_alone(tiny_run, caplog):
    with caplog.at_level("INFO"):
        run_recbole(config_dict=tiny_run | {"lora_adapter": "default", "epochs": 0})
    assert "lora_adapter: default is for llm_name_or_path: embedded" in caplog.text


def test_the_default_adapter_is_what_its_card_says():
    card = json.loads((DEFAULT_ADAPTER / "card.json").read_text())
    weights = (DEFAULT_ADAPTER / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == card["weights_sha256"]
    assert len(weights) < 12e6


@pytest.mark.parametrize("dataset", ["ml-100k", "amazon-beauty"])
def test_the_default_adapter_has_seen_no_target_of_validation_or_test(dataset, paper_data, workdir):
    """It was tuned on the training part of a split with this digest, or not on this data at all."""
    from recbole_llamarec.data.split import prepare_split

    card = json.loads((DEFAULT_ADAPTER / "card.json").read_text())
    if dataset not in card["tuned_on_training_part_of"]:
        pytest.skip(f"not tuned on {dataset}")
    where = {} if dataset == "ml-100k" else {"data_path": str(paper_data)}
    config = Config(model="LlamaRec", dataset=dataset, config_dict=where)
    summary, _ = prepare_split(config, create_dataset(config))
    assert summary.sha256 == card["tuned_on_training_part_of"][dataset]
