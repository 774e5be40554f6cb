"""The script that trains the package's adapters, with a small recipe."""

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
    """Of a run, which ``adapters.py`` reads from a recipe but for the data."""
    own = tiny_settings(workdir, tiny_llama) | {"rerank_fusion": "auto"}
    own |= {"ranking_method": "readout", "lora_layers": [0, 1], "lora_r": 4}
    own["properties"] = "readout.yaml"
    left_out = {key: own.pop(key) for key in ("data_path", "model", "dataset", "checkpoint_dir")}
    file = workdir / "recipes.yaml"
    letters = own | {"properties": "small-model-retrieved.yaml", "ranking_method": "verbalizer"}
    letters |= {"dataset": "tiny", "starts_from": "tiny"}
    file.write_text(yaml.safe_dump({"tiny": own, "tiny-letters": letters}))
    monkeypatch.setattr(adapters, "RECIPES", file)
    return left_out | {key: value for key, value in own.items() if key != "properties"}


def test_a_stopped_run_goes_on_and_its_adapter_is_found(settings, monkeypatch):
    command = ["tiny", f"--data={settings['data_path']}", "--out=shipped"]
    from recbole_llamarec.trainer import LlamaRecTrainer

    def is_stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LlamaRecTrainer, "_fuse", is_stopped)
        with pytest.raises(KeyboardInterrupt):
            adapters.main(command)
    (tuned,) = Path("saved/adapters").glob("*.adapter")
    adapters.main(command)

    shipped = Path("shipped/tiny")
    assert check_sums(shipped)
    full, rounded = (load_file(folder / adapters.WEIGHTS_FILE) for folder in (tuned, shipped))
    assert all(torch.equal(rounded[name], own.bfloat16()) for name, own in full.items())
    card = read_card(shipped)
    assert card.samples == 16 and set(card.validation) >= {"LRURec", "readout"}
    assert (shipped / "README.md").read_text() == card.page()  # in the order of the stages
    assert not list(Path("saved/adapters").glob("*.resume.pt"))

    monkeypatch.setattr("recbole_llamarec.adapters.find.SHIPPED", Path("shipped"))
    properties = adapters.ROOT / "properties" / "readout.yaml"
    config = Config(config_file_list=[str(properties)], config_dict=settings)
    part, *_ = data_preparation(config, create_dataset(config))
    run = LlamaRecSettings.from_config(config)
    assert find_adapter(run, part.dataset, settings["llm_name_or_path"]) == shipped


def test_a_second_recipe_starts_from_the_adapter_of_the_first(settings, capsys):
    command = ["tiny-letters", f"--data={settings['data_path']}", "--out=shipped"]
    adapters.main(command)  # trains the first one, too, which is not there
    adapters.main(command)
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    shipped = [line for line in lines if line.startswith("shipped/")]
    assert shipped == ["shipped/tiny", "shipped/tiny-letters", "shipped/tiny-letters"]

    first, second = (read_card(Path("shipped") / name) for name in ("tiny", "tiny-letters"))
    assert (first.samples, second.samples) == (16, 32)
    assert second.dataset == "tiny" and second.prompts["ranking_method"] == "verbalizer"
