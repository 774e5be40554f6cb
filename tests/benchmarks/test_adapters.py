"""The script that trains the package's adapters, with two small parts."""

from __future__ import annotations

from pathlib import Path

import adapters
import pytest
import torch
import yaml
from helpers import tiny_settings
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from safetensors.torch import load_file

from recbole_llamarec.adapters.card import read_card
from recbole_llamarec.adapters.find import find_adapter
from recbole_llamarec.checksums import check_sums
from recbole_llamarec.settings import LlamaRecSettings


@pytest.fixture
def settings(workdir, tiny_llama, monkeypatch) -> dict:
    """Of the parts, which ``adapters.py`` reads from a recipe."""
    own = tiny_settings(workdir, tiny_llama) | {"rerank_fusion": "auto"}
    data_path, *_ = [own.pop(key) for key in ("data_path", "model", "dataset", "checkpoint_dir")]
    parts = [
        {"properties": "small-model.yaml", "train_binding_steps": 1, "train_pool": 4},
        {"properties": "small-model-retrieved.yaml"},
    ]
    common = {"train_max_samples": 16, "lora_layers": [0, 1], "lora_r": 4, "train_batch_size": 8}
    recipe = {"settings": own, "parts": [part | common for part in parts]}
    file = workdir / "recipes.yaml"
    file.write_text(yaml.safe_dump({"tiny": recipe}))
    monkeypatch.setattr(adapters, "RECIPES", file)
    return {**own, "model": "LlamaRec", "dataset": "tiny", "data_path": data_path}


def test_parts_follow_one_another_and_the_last_ones_adapter_is_found(settings, monkeypatch):
    command = ["tiny", f"--data={settings['data_path']}", "--out=shipped"]
    trained, train = [], adapters.train

    def second_part_stops(dataset, own, part):
        trained.append(part["properties"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(dataset, own, part)

    monkeypatch.setattr(adapters, "train", second_part_stops)
    with pytest.raises(KeyboardInterrupt):
        adapters.main(command)
    adapters.main(command)
    assert trained == ["small-model.yaml"] + 2 * ["small-model-retrieved.yaml"]

    shipped = Path("shipped/tiny")
    assert check_sums(shipped)
    (last,) = Path("saved/adapters/tiny/part-2").glob("*.adapter")
    full, rounded = (load_file(folder / adapters.WEIGHTS) for folder in (last, shipped))
    assert all(torch.equal(rounded[name], own.bfloat16()) for name, own in full.items())
    card = read_card(shipped)
    assert card.samples == 32 and set(card.validation) >= {"LRURec", "verbalizer"}

    monkeypatch.setattr("recbole_llamarec.adapters.find.SHIPPED", Path("shipped"))
    properties = adapters.ROOT / "properties" / "small-model-retrieved.yaml"
    config = Config(config_file_list=[str(properties)], config_dict=settings)
    part, *_ = data_preparation(config, create_dataset(config))
    run = LlamaRecSettings.from_config(config)
    assert find_adapter(run, part.dataset, settings["llm_name_or_path"]) == shipped
