"""RecBole's caches are taken for the same settings and files alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from helpers import write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.utils import load_split_dataloaders, save_split_dataloaders

COLUMNS = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "year"]}
FILES = {"save_dataset": "tiny-LlamaRecDataset.pth",
         "save_dataloaders": "tiny-for-LRURec-dataloader.pth"}  # fmt: skip


@pytest.fixture
def settings(workdir) -> dict:
    """Five of 60 items have no title."""
    write_dataset(workdir / "data", untitled=5)
    return {
        "data_path": str(workdir / "data"),
        "checkpoint_dir": str(workdir / "saved"),
        "load_col": COLUMNS,
        "item_text_format": "{title}",
        "item_text_missing": "drop",
    }


def config_of(settings: dict, **changes) -> Config:
    return Config(model="LRURec", dataset="tiny", config_dict=settings | changes)


def loaders_of(config: Config):
    return data_preparation(config, create_dataset(config))


def prepare(settings: dict, **changes):
    """A run's training data."""
    return loaders_of(config_of(settings, **changes))[0].dataset


@pytest.mark.parametrize("cache", FILES)
def test_a_cache_of_the_same_settings_is_taken(settings, caplog, cache):
    first = prepare(settings, **{cache: True})
    with caplog.at_level(logging.INFO):
        again = prepare(settings, **{cache: True})
    assert "Load " in caplog.text and FILES[cache] in caplog.text and "made anew" not in caplog.text
    assert again.item_texts() == first.item_texts() and again.item_num == 56
    assert (again.inter_feat["item_id"] == first.inter_feat["item_id"]).all()


@pytest.mark.parametrize("cache", FILES)
@pytest.mark.parametrize(
    ("key", "value", "n_items", "text"),
    [
        ("item_text_missing", "fallback", 61, "The"),
        ("item_text_format", "{title} ({year})", 56, "("),
        ("exact_chronology", False, 56, "The"),
        ("MAX_ITEM_LIST_LENGTH", 3, 56, "The"),
    ],
)
def test_a_cache_of_other_settings_is_made_anew(settings, caplog, cache, key, value, n_items, text):
    prepare(settings, **{cache: True})
    with caplog.at_level(logging.WARNING):
        dataset = prepare(settings, **{cache: True, key: value})
    assert FILES[cache] in caplog.text and "made anew" in caplog.text
    assert f"{key} was " in caplog.text and f"and is {value!r}" in caplog.text
    assert dataset.item_num == n_items and text in dataset.item_texts()[-1]
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # the new one is kept
        assert prepare(settings, **{cache: True, key: value}).item_num == n_items
    assert "made anew" not in caplog.text


@pytest.mark.parametrize("cache", FILES)
def test_a_cache_of_files_that_have_changed_is_made_anew(settings, caplog, cache):
    prepare(settings, **{cache: True})
    file = Path(settings["data_path"], "tiny", "tiny.item")
    file.write_text(file.read_text().replace("i0\t\t", "i0\tNow Named\t"))
    with caplog.at_level(logging.WARNING):
        dataset = prepare(settings, **{cache: True})
    assert "tiny.item has changed" in caplog.text
    assert "Now Named" in dataset.item_texts() and dataset.item_num == 57


@pytest.mark.parametrize("cache", FILES)
def test_a_cache_that_is_cut_off_is_made_anew(settings, caplog, cache):
    prepare(settings, **{cache: True})
    file = Path(settings["checkpoint_dir"], FILES[cache])
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert prepare(settings, **{cache: True}).item_num == 56
    assert "cannot be read" in caplog.text


def test_a_cache_of_another_version_is_made_anew(settings, caplog, monkeypatch):
    prepare(settings, save_dataset=True)
    monkeypatch.setattr("recbole_llamarec.integration.caches.__version__", "9")
    with caplog.at_level(logging.WARNING):
        prepare(settings, save_dataset=True)
    assert "recbole_llamarec was" in caplog.text and "made anew" in caplog.text


def test_a_cache_at_a_path_of_its_own(settings, workdir, caplog):
    prepare(settings, save_dataset=True)
    moved = Path(settings["checkpoint_dir"], FILES["save_dataset"]).rename(workdir / "kept.pth")
    with caplog.at_level(logging.INFO):
        assert prepare(settings, dataset_save_path=str(moved)).item_num == 56
        assert f"Load filtered dataset from: [{moved}]" in caplog.text
        changed = {"item_text_missing": "fallback", "dataset_save_path": str(moved)}
        assert prepare(settings, **changed).item_num == 61


def test_a_cached_data_set_is_split_as_the_run_says(settings):
    ratios = {"split": {"RS": [2, 1, 1]}, "order": "TO", "group_by": "user", "mode": "full"}
    expected = prepare(settings, eval_args=ratios)
    assert len(prepare(settings, save_dataset=True)) > len(expected)
    assert len(prepare(settings, save_dataset=True, eval_args=ratios)) == len(expected)


def test_loaders_have_the_batch_sizes_of_the_run(settings):
    prepare(settings, save_dataloaders=True)
    sizes = {"train_batch_size": 3, "eval_batch_size": 2}
    train, valid, _ = loaders_of(config_of(settings, **sizes))
    assert len(next(iter(train))) == 3 and len(next(iter(valid))[0]) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("train_batch_size", 3), ("eval_batch_size", 3), ("worker", 1), ("shuffle", False)],
)
def test_cached_loaders_that_deal_out_rows_otherwise_are_made_anew(settings, caplog, key, value):
    prepare(settings, save_dataloaders=True)
    with caplog.at_level(logging.WARNING):
        prepare(settings, **{key: value})
    assert f"{key} was " in caplog.text and "made anew" in caplog.text


def test_loaders_are_cached_for_one_process_alone(settings, caplog):
    config = config_of(settings, save_dataloaders=True)
    loaders = loaders_of(config)
    cached = load_split_dataloaders(config)
    assert len(cached) == 3 and {loader.dataset.config for loader in cached} == {config}
    config["single_spec"] = False  # one of several processes
    assert load_split_dataloaders(config) is None
    for loader in loaders:
        loader.generator = cached[0].generator
    save_split_dataloaders(config, loaders)
    with caplog.at_level(logging.WARNING):
        assert load_split_dataloaders(config_of(settings)) is None
    assert "single_spec was False and is True" in caplog.text
