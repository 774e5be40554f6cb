"""The adapter that was trained on a run's training part is found by its card, and no other is."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers import checkpoint_of
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model
from runs import run_of

from recbole_llamarec.adapters.card import (
    AdapterCard,
    differing,
    prompt_settings,
    read_card,
    training_part_digest,
)
from recbole_llamarec.adapters.find import adapter_folders, check_adapter, find_adapter
from recbole_llamarec.settings import LlamaRecSettings
from recbole_llamarec.trainer import LlamaRecTrainer


@pytest.fixture
def kept(trained, tmp_path, monkeypatch) -> Path:
    """The finished run's adapter in the user's cache."""
    monkeypatch.setenv("RECBOLE_LLAMAREC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "adapters" / "tiny"
    shutil.copytree(trained.checkpoint.with_suffix(".adapter"), folder)
    return folder


def prepared(settings, **changes):
    config = Config(config_dict={**settings, **changes})
    train, valid, test = data_preparation(config, create_dataset(config))
    return config, train, valid, test


def found(settings, model="", **changes) -> Path | None:
    config, train, *_ = prepared(settings, **changes)
    name = model or settings["llm_name_or_path"]
    return find_adapter(LlamaRecSettings.from_config(config), train.dataset, name)


def test_the_digest_is_of_the_training_targets_by_their_tokens(trained):
    """All but each user's first item, which no row has as its target, and last two."""
    lines = pd.read_csv(Path(trained.data_path) / "tiny" / "tiny.inter", sep="\t", dtype=str)
    chosen = lines.groupby("user_id:token")["item_id:token"].apply(lambda items: items[1:-2])
    texts = sorted(f"{user}\t{item}\n" for (user, _), item in chosen.items())
    expected = hashlib.sha256("".join(texts).encode()).hexdigest()[:32]
    _, train, *_ = prepared(trained.settings)
    assert training_part_digest(train.dataset) == expected
    assert read_card(trained.checkpoint.with_suffix(".adapter")).training_part == expected


def test_a_run_saves_a_card_that_says_what_it_did(trained):
    folder = trained.checkpoint.with_suffix(".adapter")
    card = read_card(folder)
    assert (card.dataset, card.samples, card.seed) == ("tiny", 16, 2020)
    assert card.prompts["ranking_method"] == "verbalizer"
    assert card.prompts["prompt_max_history"] == 5 and card.curve
    page = (folder / "README.md").read_text()
    assert card.training_part in page and "license: mit" in page and card.command in page
    (at, loss), *_ = card.losses.items()
    assert f"{at}: {loss:.4f}" in page and list(card.losses)[-1] == "16"


def test_a_card_counts_the_samples_that_were_drawn(tiny_run):
    """A short last batch is not a whole one."""
    run = run_of(tiny_run, train_max_samples=10, epochs=2)  # batches of 8 and 2
    run.trainer.fit(run.train, run.valid)
    card = read_card(Path(run.trainer.saved_model_file).with_suffix(".adapter"))
    assert card.samples == 20
    assert list(card.losses) == ["5", "10", "15", "20"]  # four steps


def test_the_adapter_of_the_same_training_part_model_and_prompts_is_found(trained, kept):
    assert kept in adapter_folders()
    assert found(trained.settings) == kept


@pytest.mark.parametrize(
    "changes",
    [
        {"user_inter_num_interval": "[8,inf)"},
        {"eval_args": {"split": {"RS": [0.5, 0.25, 0.25]}, "order": "TO", "group_by": "user"}},
        {"prompt_max_history": 6},
        {"prompt_separator": " | "},
        {"ranking_method": "likelihood"},
        {"model": "another-model"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_adapter_of_anything_else_is_not_taken(trained, kept, changes):
    model = changes.pop("model", "")
    assert found(trained.settings, model, **changes) is None


def test_an_adapter_of_the_users_cache_comes_before_one_of_the_package(
    trained, kept, tmp_path, monkeypatch
):
    shutil.copytree(kept, tmp_path / "package" / "a-tiny")
    monkeypatch.setattr("recbole_llamarec.adapters.find.SHIPPED", tmp_path / "package")
    assert adapter_folders() == [kept, tmp_path / "package" / "a-tiny"]
    assert found(trained.settings) == kept


def test_prompts_that_differ_are_warned_of_unless_another_adapter_fits(
    trained, kept, caplog, monkeypatch
):
    monkeypatch.setattr("recbole_llamarec.adapters.find.SHIPPED", kept / "nothing")
    other = shutil.copytree(kept, kept.with_name("a-tiny")) / "card.json"
    other.write_text(other.read_text().replace('max_history": 5', 'max_history": 6'))
    assert found(trained.settings) == kept
    assert "is not taken" not in caplog.text
    assert found(trained.settings, prompt_max_history=7) is None
    refused = [line for line in caplog.messages if "is not taken" in line]
    assert refused == [
        f"The adapter {folder} is not taken: prompt_max_history is 7, the adapter's {shown}."
        for folder, shown in ((other.parent, 6), (kept, 5))
    ]


@pytest.mark.parametrize(
    ("name", "method", "text", "differs"),
    [
        ("likelihood_heading", "verbalizer", "{history} {candidates}", False),
        ("likelihood_heading", "likelihood", "{history} {candidates}", True),
        ("prompt_text", "likelihood", "{history} {candidates}", False),
        ("prompt_max_history", "likelihood", "{history} {candidates}", True),
        ("labels", "likelihood", "{history} {candidates}", False),
        ("labels", "readout", "{history} {candidates}", False),
        ("labels", "verbalizer", "{history} {candidates}", True),
        ("prompt_response", "readout", "{history} {candidates}", False),
        ("prompt_response", "verbalizer", "{history} {candidates}", True),
        ("prompt_instruction", "verbalizer", "{history} {candidates}", False),
        ("prompt_instruction", "verbalizer", "{instruction} {history} {candidates}", True),
    ],
)
def test_a_setting_that_no_prompt_shows_makes_no_difference(name, method, text, differs):
    item = "{title} ({label})" if method == "verbalizer" else "{title}"
    prompts = {"ranking_method": method, "prompt_text": text, "prompt_candidate_item": item}
    prompts[name] = "one"
    expected = [f"{name} is 'two', the adapter's 'one'"] if differs else []
    assert differing(prompts, {**prompts, name: "two"}) == expected


@pytest.mark.parametrize(
    ("method", "fits"), [("verbalizer", True), ("readout", True), ("likelihood", False)]
)
def test_a_card_without_the_heading_fits_prompts_that_do_not_show_it(method, fits):
    run = prompt_settings(LlamaRecSettings(ranking_method=method))
    card = {name: value for name, value in run.items() if name != "likelihood_heading"}
    assert (differing(card, run) == []) is fits


def test_an_adapter_that_is_found_ranks_without_being_tuned_again(trained, kept, workdir):
    settings = {**trained.settings, "checkpoint_dir": str(workdir / "saved")}
    config, train, valid, test = prepared(settings)
    from recbole.utils import get_model, init_seed

    init_seed(config["seed"], config["reproducibility"])
    model = get_model("LlamaRec")(config, train.dataset)
    trainer = LlamaRecTrainer(config, model)
    trainer.fit(train, valid, show_progress=False)
    assert trainer.journal.ranker.losses == {}
    result = trainer.evaluate(test)
    assert result == trained.result["test_result"]
    again = checkpoint_of(workdir / "saved").with_suffix(".adapter")
    assert read_card(again) == read_card(kept)


def test_keys_of_tuning_that_an_adapter_leaves_without_effect_are_named_once(
    trained, kept, workdir, caplog
):
    run = run_of(trained.settings, checkpoint_dir=str(workdir / "saved"))
    run.trainer.fit(run.train, run.valid)
    (warning,) = [line for line in caplog.messages if "have no effect" in line]
    assert "epochs, learning_rate, train_batch_size, train_max_samples." in warning
    assert "--lora_adapter=None" in warning


def test_an_adapter_of_another_training_part_of_the_same_data_is_refused(trained, kept):
    config, train, *_ = prepared(trained.settings, user_inter_num_interval="[8,inf)")
    with pytest.raises(ValueError, match="lora_adapter.*another training part of tiny"):
        check_adapter(kept, train.dataset)
    train.dataset.dataset_name = "other-data"  # of which the adapter holds no target
    check_adapter(kept, train.dataset)


def of_other_data(folder: Path, **changes) -> AdapterCard:
    """Say in an adapter's card that it is of another data set."""
    card = replace(read_card(folder), dataset="other-data", **changes)
    (folder / "card.json").write_text(card.json())
    (folder / "SHA256SUMS").unlink()
    return card


def test_what_an_adapter_has_started_from_is_refused_likewise(trained, kept):
    """Tuned on other data since, it may still hold targets of this run."""
    _, train, *_ = prepared(trained.settings)
    same = training_part_digest(train.dataset)
    of_other_data(kept, started_from={"third-data": "0", "tiny": same})
    check_adapter(kept, train.dataset)
    _, train, *_ = prepared(trained.settings, user_inter_num_interval="[8,inf)")
    with pytest.raises(ValueError, match=f"another training part of tiny .digest {same}"):
        check_adapter(kept, train.dataset)


def test_a_card_names_the_data_sets_of_the_adapters_that_it_started_from(trained, kept, workdir):
    start = of_other_data(kept, started_from={"third-data": "0"})
    assert "- before it: the training part of third-data, digest `0`" in start.page()
    run = run_of(trained.settings, checkpoint_dir=str(workdir / "saved"), lora_adapter=str(kept))
    run.trainer.fit(run.train, run.valid)
    card = read_card(Path(run.trainer.saved_model_file).with_suffix(".adapter"))
    assert card.dataset == "tiny" and card.samples == 2 * start.samples
    assert card.started_from == {"third-data": "0", "other-data": start.training_part}
    assert set(card.training_parts) == {"third-data", "other-data", "tiny"}


def test_a_card_of_before_has_started_from_nothing_that_it_knows(kept):
    written = json.loads((kept / "card.json").read_text())
    del written["started_from"], written["losses"]
    (kept / "card.json").write_text(json.dumps(written))
    assert read_card(kept).started_from == {} and read_card(kept).losses == {}


def test_an_adapter_named_from_the_home_folder_is_checked_too(trained, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, train, *_ = prepared(trained.settings, user_inter_num_interval="[8,inf)")
    with pytest.raises(ValueError, match="lora_adapter.*another training part of tiny"):
        check_adapter(Path("~/cache/adapters/tiny"), train.dataset)


def test_an_adapter_named_by_the_run_is_checked_when_the_model_is_loaded(trained, kept):
    config, train, *_ = prepared(
        trained.settings, user_inter_num_interval="[8,inf)", lora_adapter=str(kept)
    )
    from recbole.utils import get_model

    model = get_model("LlamaRec")(config, train.dataset)
    with pytest.raises(ValueError, match="^lora_adapter: .*another training part"):
        model.scorers["verbalizer"].ranker  # noqa: B018


def test_a_damaged_card_is_an_error_that_names_it(tmp_path):
    assert read_card(tmp_path) is None
    for text in ("{", "[]", json.dumps({"dataset": "tiny"})):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(ValueError, match=r"card\.json is no card"):
            read_card(tmp_path)


def test_a_card_without_validation_has_a_page():
    card = AdapterCard("tiny", "0", "a-model", {})
    assert "by optimizer step: none" in card.page()


def test_the_checkpoint_of_a_run_is_read_without_looking_for_adapters(trained, kept):
    shutil.rmtree(kept)
    _, model, *_ = load_data_and_model(str(trained.checkpoint), trained.data_path)
    assert model.scorers["verbalizer"].ranker.model is not None
