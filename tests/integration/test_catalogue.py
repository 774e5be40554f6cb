"""Checkpoints hold their tokens: data in another order are numbered alike, other data refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import checkpoint_of, tiny_settings
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model, get_trainer

from recbole_llamarec.files import save_tensors
from recbole_llamarec.integration.catalogue import TokenOrder, number_by, order_in
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.tuning.state import result_settings

HISTORIES = [["i5", "i6", "i7"], ["i30"]]


class Trained(NamedTuple):
    """A run without a language model, on files in their first order."""

    settings: dict[str, Any]
    result: dict[str, Any]
    checkpoint: Path
    retriever: Path
    recommended: list[list[str]]


def recommended(checkpoint: Path, data_path: str) -> list[list[str]]:
    results = Recommender.from_checkpoint(checkpoint, data_path).recommend(HISTORIES, 60)
    return [[item.item for item in result] for result in results]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama) -> Trained:
    root = tmp_path_factory.mktemp("catalogue")
    settings = tiny_settings(root, tiny_llama)
    settings |= {"ranking_method": "none", "rerank_fusion": "auto"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        result = run_recbole(config_dict=dict(settings))
    checkpoint = checkpoint_of(root / "saved")
    ranked = recommended(checkpoint, settings["data_path"])
    retriever = checkpoint.with_suffix(".LRURec.pth")
    return Trained(settings, result, checkpoint, retriever, ranked)


@pytest.fixture
def other_data(run, workdir) -> Path:
    """A copy of the run's data set, to change; the path of ``tiny``."""
    shutil.copytree(run.settings["data_path"], workdir / "data")
    return workdir / "data" / "tiny"


def change(file: Path, lines_of) -> None:
    """Replace the lines behind the head line by ``lines_of`` them."""
    head, *lines = file.read_text().splitlines()
    file.write_text("\n".join([head, *lines_of(lines)]) + "\n")


def reverse(folder: Path) -> None:
    """Turn the order of the lines; times stay, and no two of a user are equal."""
    for name in ("tiny.inter", "tiny.item"):
        change(folder / name, lambda lines: lines[::-1])


def grow(folder: Path) -> None:
    change(folder / "tiny.inter", lambda lines: [*lines, "1\tnew\t881299999"])
    change(folder / "tiny.item", lambda lines: [*lines, "new\tA New Film\t2020"])


def shrink(folder: Path) -> None:
    for name in ("tiny.inter", "tiny.item"):
        change(folder / name, lambda lines: [x for x in lines if "i7\t" not in x])


def test_checkpoints_hold_the_tokens_of_their_data(run):
    config = Config(config_dict=dict(run.settings))
    dataset = create_dataset(config)
    for file in (run.checkpoint, run.retriever):
        tokens = torch.load(file, weights_only=True)["tokens"]
        assert tokens["items"] == dataset.field2id_token["item_id"].tolist()
        assert tokens["users"] == dataset.field2id_token["user_id"].tolist()


def test_the_same_data_in_another_order_of_lines_give_the_same_items(run, other_data):
    reverse(other_data)
    data_path = str(other_data.parent)
    unmapped = create_dataset(Config(config_dict=run.settings | {"data_path": data_path}))
    assert unmapped.field2id_token["item_id"][1] != "i54"  # otherwise nothing is shown
    assert recommended(run.checkpoint, data_path) == run.recommended
    config, model, dataset, _, _, test = load_data_and_model(str(run.checkpoint), data_path)
    texts = dict(zip(dataset.field2id_token["item_id"], model.item_texts, strict=True))
    rows = (line.split("\t") for line in (other_data / "tiny.item").read_text().splitlines()[1:])
    assert {token: title for token, title, _ in rows}.items() >= dict(
        list(texts.items())[1:]
    ).items()
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert trainer.evaluate(test, load_best_model=False) == run.result["test_result"]


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (grow, ["does not know 1 of 61, such as 'new'"]),
        (shrink, ["1 of its 60 are missing, such as 'i7'", "--ranking_method=none"]),
        (lambda folder: (grow(folder), shrink(folder)), ["does not know 1 of 60", "1 of its 60"]),
    ],
)
def test_other_items_are_refused_with_their_number(run, other_data, alter, words):
    alter(other_data)
    with pytest.raises(ValueError, match="items are not those that the checkpoint") as raised:
        Recommender.from_checkpoint(run.checkpoint, other_data.parent)
    settings = run.settings | {"data_path": str(other_data.parent)}
    with pytest.raises(ValueError, match=f"retriever_checkpoint.*{run.retriever.name}") as again:
        create_dataset(Config(config_dict=settings | {"retriever_checkpoint": str(run.retriever)}))
    for word in words:
        assert word in str(raised.value) and word in str(again.value)


def test_a_retriever_is_taken_over_on_data_in_another_order(run, other_data):
    reverse(other_data)
    changes = {"data_path": str(other_data.parent), "retriever_checkpoint": str(run.retriever)}
    result = run_recbole(config_dict=run.settings | changes, saved=False)
    assert result["test_result"] == run.result["test_result"]


def test_a_data_set_that_is_made_already_is_refused_where_its_order_differs(run, other_data):
    reverse(other_data)
    config = Config(config_dict=run.settings | {"data_path": str(other_data.parent)})
    train, _, test = data_preparation(config, create_dataset(config))
    trainer = get_trainer(config["MODEL_TYPE"], "LlamaRec")(
        config, get_model("LlamaRec")(config, train.dataset)
    )
    with pytest.raises(ValueError, match="numbers them otherwise.*load_data_and_model"):
        trainer.evaluate(test, model_file=str(run.checkpoint))


def test_a_training_that_goes_on_is_of_the_same_items(run, other_data):
    """RecBole's ``resume_checkpoint`` of a retriever by itself."""
    reverse(other_data)
    changes = {"model": "LRURec", "epochs": 1, "metrics": ["NDCG"]}
    of_data = ("dataset", "checkpoint_dir", "load_col", "MAX_ITEM_LIST_LENGTH")
    own = {key: run.settings[key] for key in (*of_data, "valid_metric", "topk")}
    for data_path, is_same in ((run.settings["data_path"], True), (str(other_data.parent), False)):
        config = Config(config_dict=own | changes | {"data_path": data_path})
        train, valid, _ = data_preparation(config, create_dataset(config))
        model = get_model("LRURec")(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "LRURec")(config, model)
        trainer.resume_checkpoint(str(run.retriever))
        if is_same:
            trainer.fit(train, valid, saved=False, verbose=False)
        else:
            with pytest.raises(ValueError, match="numbers them otherwise"):
                trainer.fit(train, valid, saved=False, verbose=False)


def test_an_interrupted_run_does_not_go_on_with_renamed_items(run, other_data):
    def settings_of(data_path: str) -> dict[str, str]:
        config = Config(config_dict=run.settings | {"data_path": data_path})
        return result_settings(config, *data_preparation(config, create_dataset(config))[:2])

    same = settings_of(str(other_data.parent))
    assert same["data"] == settings_of(run.settings["data_path"])["data"]
    for name in ("tiny.inter", "tiny.item"):
        file = other_data / name
        file.write_text(file.read_text().replace("i7\t", "i07\t"))
    assert settings_of(str(other_data.parent))["data"] != same["data"]


def test_checkpoints_without_tokens_are_taken_with_a_warning(run, other_data, caplog, tmp_path):
    checkpoint = load_checkpoint(run.checkpoint)
    del checkpoint["tokens"]
    save_tensors(checkpoint, tmp_path / "old.pth")
    with caplog.at_level(logging.WARNING):
        assert recommended(tmp_path / "old.pth", str(other_data.parent)) == run.recommended
    assert "holds no item tokens" in caplog.text
    grow(other_data)
    with pytest.raises(ValueError, match="weights in .*old.pth.* do not fit the data set"):
        load_data_and_model(str(tmp_path / "old.pth"), str(other_data.parent))


@pytest.mark.parametrize(
    "tokens",
    ["i1", {"items": ["[PAD]", "i1"]}, {"items": ["a", "a"], "users": ["[PAD]"]},
     {"items": ["a", 1], "users": ["[PAD]"]}, {"items": [], "users": []}],
)  # fmt: skip
def test_damaged_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens in the checkpoint 'a.pth' are damaged"):
        order_in({"tokens": tokens, "state_dict": {}}, "a.pth")


@pytest.mark.parametrize(
    ("name", "reads_users"),
    [("HGN", True), ("FPMC", True), ("TransRec", True), ("SASRec", False), ("LRURec", False)],
)
def test_users_matter_where_weights_belong_to_them(run, workdir, name, reads_users):
    settings = {key: run.settings[key] for key in ("dataset", "data_path", "load_col")}
    negatives = {} if name in ("FPMC", "TransRec") else {"train_neg_sample_args": None}
    config = Config(model=name, config_dict=settings | negatives)
    dataset = create_dataset(config)
    dataset.build()
    tokens = {
        "items": dataset.field2id_token["item_id"].tolist(),
        "users": dataset.field2id_token["user_id"].tolist(),
    }
    weights = get_model(name)(config, dataset).state_dict()
    assert order_in({"tokens": tokens, "state_dict": weights}, "a.pth").reads_users is reads_users


def test_users_that_differ_are_refused_where_weights_belong_to_them(run, other_data):
    tokens = load_checkpoint(run.checkpoint)["tokens"]
    reverse(other_data)
    change(other_data / "tiny.inter", lambda lines: [*lines, *(f"u\ti{n}\t{n}" for n in range(5))])
    for reads_users in (True, False):
        config = Config(config_dict=run.settings | {"data_path": str(other_data.parent)})
        number_by(config, TokenOrder("a checkpoint", tokens, reads_users))
        if reads_users:
            with pytest.raises(ValueError, match="users are not .* know 1 of 41, such as 'u'"):
                create_dataset(config)
        else:
            dataset = create_dataset(config)
            assert dataset.field2id_token["item_id"].tolist() == tokens["items"]
            assert dataset.user_num == 42
