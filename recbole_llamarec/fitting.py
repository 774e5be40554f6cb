"""A run without its test: what trains a part of other runs, such as a retriever or an adapter."""

from __future__ import annotations

from typing import Any

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_logger, init_seed


def fitted(config: Config) -> Any:
    """Train a run as RecBole's ``run_recbole`` does, but do not test it.

    Args:
        config: of the run.

    Returns:
        its trainer; the run is complete, and its files stand beside ``saved_model_file``.
    """
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train_data, valid_data, show_progress=config["show_progress"])
    trainer.complete()
    return trainer
