"""Small real objects for the tests: a data set of 40 users and a random two-layer Llama."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from browser import browser, open_page  # noqa: F401  fixtures
from helpers import DATASETS, checkpoint_of, tiny_settings
from tiny_llama import write_tiny_llama

import recbole_llamarec  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Two cores are shared by the test processes."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty working directory, so that RecBole's logs and checkpoints leave no trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    return tmp_path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Directory of a random two-layer Llama with a byte-level BPE tokenizer."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def tiny_run(workdir, tiny_llama) -> dict:
    """Settings of a run in an empty directory."""
    return tiny_settings(workdir, tiny_llama)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its settings, RecBole's result, its checkpoint and its log."""

    settings: dict
    result: dict
    checkpoint: Path

    @property
    def data_path(self) -> str:
        """Where its data set lies, which whoever reads the checkpoint has to say."""
        return self.settings["data_path"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_llama) -> TrainedRun:
    """One run of LlamaRec on the small data set, by RecBole's own ``run_recbole``."""
    from recbole.quick_start import run_recbole

    root = tmp_path_factory.mktemp("run")
    settings = tiny_settings(root, tiny_llama)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        result = run_recbole(config_dict=dict(settings))
    return TrainedRun(settings, result, checkpoint_of(root / "saved"))


@pytest.fixture(scope="session")
def recommender(trained):
    """The run's model, for new histories."""
    from recbole_llamarec.recommender import Recommender

    return Recommender.from_checkpoint(trained.checkpoint, trained.data_path)


@pytest.fixture(scope="session")
def test_rows(trained):
    """Users, their whole histories as tokens, and the evaluator's order of items."""
    from recbole.quick_start import load_data_and_model

    _, model, dataset, _, _, test = load_data_and_model(str(trained.checkpoint), trained.data_path)
    model.eval()
    interaction, *_ = next(iter(test))
    orders = model.full_sort_predict(interaction).argsort(dim=1, descending=True)
    users = dataset.id2token(dataset.uid_field, interaction["user_id"].numpy()).tolist()
    rows = zip(interaction["item_id_list"], interaction["item_length"], strict=True)
    histories = [dataset.id2token(dataset.iid_field, row[:n].numpy()).tolist() for row, n in rows]
    tokens = [dataset.id2token(dataset.iid_field, order[:-1].numpy()).tolist() for order in orders]
    return users, histories, tokens


@pytest.fixture(scope="session")
def paper_data(tmp_path_factory) -> Path:
    """Folder with atomic files of the paper's MovieLens and Beauty; skips without the sources."""
    from recbole_llamarec.data.convert.conversion import convert

    for name in ("ml-latest-small", "amazon-beauty"):
        if not (DATASETS / name).is_dir():
            pytest.skip(f"{name} is not in {DATASETS}; set RECBOLE_DATA")
    folder = tmp_path_factory.mktemp("paper-data")
    convert("ml-latest", DATASETS / "ml-latest-small", folder / "ml-latest-small")
    (folder / "amazon-beauty").symlink_to(DATASETS.resolve() / "amazon-beauty")
    return folder
