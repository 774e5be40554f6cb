"""A retriever of another package, and what cannot be registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.quick_start import run_recbole
from recbole.trainer import Trainer

from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.integration.registration import register_retriever


class Popular(SequentialRecommender):
    """A retriever of another package that knows popular items alone."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.scores = torch.nn.Parameter(torch.arange(float(self.n_items)) * config["factor"])

    def full_sort_predict(self, interaction):
        return self.scores.expand(len(interaction), -1)


class PopularTrainer(Trainer):
    """There is nothing to train."""

    def fit(self, *_, **__):
        self._save_checkpoint(0)


def test_a_retriever_of_another_package(tiny_run):
    for _ in range(2):  # as when a cell of a notebook is run again
        register_retriever(Popular, {"factor": 1.0, "loss_type": "CE"}, PopularTrainer)
    settings = {"retriever": "Popular", "ranking_method": "none"}
    result = run_recbole(config_dict=tiny_run | settings)
    (file,) = Path(tiny_run["checkpoint_dir"]).glob("*.Popular.pth")
    assert load_checkpoint(file)["config"]["factor"] == 1
    worst = run_recbole(config_dict=tiny_run | settings | {"retriever_config": {"factor": -1.0}})
    assert worst["test_result"] != result["test_result"]
    with pytest.raises(ValueError, match="Popular has no such key: 'factr' .did you mean 'factor'"):
        run_recbole(config_dict=tiny_run | settings | {"retriever_config": {"factr": -1.0}})


@pytest.mark.parametrize(
    "name", ["SASRec", "Bert4Rec", "BPR", "KGAT", "XGBoost", "FM", "Lrurec", "File"]
)
def test_a_retriever_cannot_take_the_name_of_a_model(name):
    with pytest.raises(ValueError, match=f"There is a model '{name}' already"):
        register_retriever(type(name, (SequentialRecommender,), {}))
