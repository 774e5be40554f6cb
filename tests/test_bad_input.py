"""Each wrong input stops before any training, with the key, the value and the remedy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_settings, write_dataset
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model, get_trainer

from recbole_llamarec.ranking.model.adapter import add_adapter, save_adapter
from recbole_llamarec.ranking.model.lora import LoraSettings


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    """Fails the test if any model is trained."""

    def fail(*_, **__):
        pytest.fail("training began")

    monkeypatch.setattr("recbole.trainer.Trainer._train_epoch", fail)
    monkeypatch.setattr("recbole_llamarec.tuning.loop.optimizer_step", fail)


def start(settings, **changes):
    config = Config(config_dict=settings | changes)
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    model = get_model("LlamaRec")(config, train.dataset)
    get_trainer(config["MODEL_TYPE"], "LlamaRec")(config, model).fit(train, valid)


def assert_stops(settings, *words, error=ValueError, **changes):
    with pytest.raises(error) as raised:
        start(settings, **changes)
    for word in words:
        assert word in str(raised.value)


def test_no_such_retriever(tiny_run):
    assert_stops(tiny_run, "retriever:", "'NoSuch'", "SASRec", retriever="NoSuch")


@pytest.mark.parametrize("name", ["BPR", "LlamaRec"])
def test_a_retriever_that_is_not_sequential(tiny_run, name):
    assert_stops(tiny_run, "retriever:", name, "sequential", retriever=name)


def test_a_key_that_the_retriever_does_not_read(tiny_run):
    bad = {"hidden_sise": 3}
    words = ("retriever_config", "hidden_sise", "hidden_size")
    assert_stops(tiny_run, *words, retriever="SASRec", retriever_config=bad)


def test_item_text_field_missing(tiny_run):
    words = ("item_text_format", "'name'", "load_col")
    assert_stops(tiny_run, *words, item_text_format="{name}")
    only_inter = {"inter": ["user_id", "item_id", "timestamp"]}
    assert_stops(tiny_run, "item_text_format", "load_col", load_col=only_inter)


def test_item_text_field_empty_for_all_items(workdir, tiny_llama):
    settings = tiny_settings(workdir, tiny_llama)
    shutil.rmtree(workdir / "data")
    write_dataset(workdir / "data", untitled=60)
    assert_stops(settings, "item_text_format", "'title'", "empty")


def test_item_text_field_that_is_a_number(tiny_run):
    file = Path(tiny_run["data_path"]) / "tiny" / "tiny.item"
    file.write_text(file.read_text().replace("year:token", "year:float"))
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "year"]}
    assert_stops(tiny_run, "'year'", "float", item_text_format="{year}", load_col=columns)


def test_a_data_set_without_timestamps(workdir, tiny_llama):
    settings = tiny_settings(workdir, tiny_llama)
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "title"]}
    assert_stops(settings, "TIME_FIELD", "'timestamp'", "load_col", load_col=columns)


def test_more_candidates_than_labels(tiny_run):
    assert_stops(
        tiny_run, "rerank_candidates: 8", "verbalizer_labels", verbalizer_labels=["A", "B"]
    )
    assert_stops(tiny_run, "verbalizer_labels", rerank_candidates=53)


def test_a_catalogue_smaller_than_the_pool_plus_the_history(tiny_run):
    words = ("rerank_candidates: 52", "catalogue", "60")
    assert_stops(tiny_run, *words, rerank_candidates=52)


def test_a_label_of_several_tokens(tiny_run):
    labels = ["Ant", "Bee", "Cat", "Dog", "Elk", "Fox", "Gnu", "Hen"]
    assert_stops(tiny_run, "verbalizer_labels", "Ant", verbalizer_labels=labels)


def test_unknown_placeholder_in_a_template(tiny_run):
    assert_stops(
        tiny_run, "prompt_candidate_item", "letter", prompt_candidate_item="{letter} {title}"
    )


def test_a_path_that_does_not_exist(tiny_run):
    assert_stops(tiny_run, "llm_name_or_path", "/no/model", llm_name_or_path="/no/model")


def test_a_misspelt_key(tiny_run):
    assert_stops(tiny_run, "lora_rank", "lora_r", lora_rank=4)


def test_an_adapter_that_does_not_fit(tiny_run, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    save_adapter(add_adapter(other, LoraSettings(), seed=0), tmp_path / "adapter")
    assert_stops(tiny_run, "does not fit", str(tmp_path), lora_adapter=str(tmp_path / "adapter"))


def test_an_adapter_that_does_not_exist(tiny_run):
    words = ("lora_adapter", "nowhere")
    assert_stops(tiny_run, *words, error=FileNotFoundError, lora_adapter="nowhere")


def test_a_target_module_that_the_model_lacks(tiny_run):
    words = ("lora_target_modules", "query", "q_proj")
    assert_stops(tiny_run, *words, lora_target_modules=["query"])


def test_a_rank_beyond_the_models_width(tiny_run):
    assert_stops(tiny_run, "lora_r: 65", "64 inputs", lora_r=65)


@pytest.mark.parametrize("method", ["verbalizer", "likelihood"])
def test_a_prompt_that_the_model_cannot_hold(tiny_run, method):
    words = ("prompt_max_tokens is 5", "likelihood_heading" if method == "likelihood" else "text")
    assert_stops(tiny_run, *words, ranking_method=method, prompt_max_tokens=5)
    if method == "verbalizer":
        long = "one and two " * 1000
        text = "{instruction} {history} {candidates} ("
        words = ("prompt_instruction", "is 2047")
        assert_stops(tiny_run, *words, prompt_text=text, prompt_instruction=long)


def test_a_retriever_that_cannot_be_built_as_its_keys_say(tiny_run):
    bad = {"n_heads": 3}
    words = ("retriever: SASRec", "retriever_config", "n_heads: 3")
    assert_stops(tiny_run, *words, retriever="SASRec", retriever_config=bad)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("USER_ID_FIELD", "nobody"),
        ("field_separator", ";"),
        ("user_inter_num_interval", "[1000,inf)"),
        ("benchmark_filename", ["a", "b", "c"]),
        ("data_path", "nowhere"),
        ("normalize_field", ["price"]),
    ],
)
def test_a_key_that_does_not_suit_the_data_set(tiny_run, key, value):
    assert_stops(tiny_run, key, **{key: value})


def test_fields_that_are_one_column(tiny_run):
    assert_stops(tiny_run, "ITEM_ID_FIELD", "TIME_FIELD", TIME_FIELD="item_id")


def test_checkpoints_cut_in_half(tiny_run, trained, tmp_path):
    half = tmp_path / "half.pth"
    for file in (trained.checkpoint, trained.checkpoint.with_suffix(".LRURec.pth")):
        half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert_stops(tiny_run, "retriever_checkpoint", "half.pth", retriever_checkpoint=str(half))
    with pytest.raises(ValueError, match=r"half\.pth.*damaged"):
        load_data_and_model(str(half))


def test_checkpoints_of_another_model_or_of_none(tiny_run, trained):
    words = ("retriever_checkpoint", "LlamaRec", "LRURec")
    assert_stops(tiny_run, *words, retriever_checkpoint=str(trained.checkpoint))
    missing = {"retriever_checkpoint": "none.pth"}
    words = ("retriever_checkpoint", "none.pth")
    assert_stops(tiny_run, *words, error=FileNotFoundError, **missing)


def test_a_checkpoint_of_another_shape(tiny_run, trained):
    file = str(trained.checkpoint.with_suffix(".LRURec.pth"))
    shape = {"embedding_size": 16}
    words = ("retriever_checkpoint", "do not fit")
    assert_stops(tiny_run, *words, retriever_checkpoint=file, retriever_config=shape)


def test_4bit_without_bitsandbytes(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert_stops(tiny_run, "llm_load_in_4bit", "pip install", llm_load_in_4bit=True)


@pytest.mark.parametrize("folder", ["saved", "saved/below"])
def test_a_file_in_place_of_checkpoint_dir(tiny_run, workdir, folder):
    (workdir / "saved").write_text("notes")
    words = ("checkpoint_dir", str(workdir / folder), "cannot be written to", "nothing has been")
    assert_stops(tiny_run, *words, error=OSError, checkpoint_dir=str(workdir / folder))
    assert (workdir / "saved").read_text() == "notes"


def test_checkpoint_dir_without_space_for_the_run(tiny_run, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.tuning.run_files.OTHER_FILES", 2**60)
    words = ("checkpoint_dir", "MB free", "1099511", "nothing has been trained yet")
    assert_stops(tiny_run, *words, error=OSError)
    assert not list(Path(tiny_run["checkpoint_dir"]).glob("*"))  # no lock either


def test_a_working_folder_that_takes_no_logs(tiny_run, workdir):
    (workdir / "log_tensorboard").write_text("notes")
    words = ("working folder, where the logs go", str(workdir / "log_tensorboard"))
    assert_stops(tiny_run, *words, error=OSError)
    (workdir / "log").write_text("notes")
    with pytest.raises(OSError, match=f"where the logs go: the folder '{workdir}/log/LlamaRec'"):
        run_recbole(config_dict=dict(tiny_run))


def test_a_title_of_ten_thousand_characters_and_a_user_with_one_item_work(tiny_run, monkeypatch):
    """Not an error: the first title is cut, and user 1 of the data set has a single item."""
    monkeypatch.undo()
    monkeypatch.chdir(Path(tiny_run["data_path"]).parent)
    monkeypatch.setattr("sys.argv", ["test"])
    file = Path(tiny_run["data_path"]) / "tiny" / "tiny.item"
    lines = file.read_text().splitlines()
    lines[1] = f"i0\t{'endless ' * 1250}\t1950"
    file.write_text("\n".join(lines) + "\n")
    start(tiny_run)


def test_nan_from_a_retriever_is_called_so():
    from recbole_llamarec.retrieval.candidates import ranked_items

    with pytest.raises(ValueError, match="NaN"):
        ranked_items(torch.tensor([[0.0, float("nan"), 1.0]]))
