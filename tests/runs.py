"""Trainers, their data and what a run leaves, for tests of whole runs and of their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import titles
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer

from recbole_llamarec.llamarec import LlamaRec
from recbole_llamarec.ranking.model.loading import LanguageModelSettings
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.scoring.language_model import LanguageModel
from recbole_llamarec.scoring.scorer import ScorerParts
from recbole_llamarec.settings import LlamaRecSettings

METRICS = [f"{metric}@{k}" for metric in ("recall", "mrr", "ndcg") for k in (5, 10)]


class Run(NamedTuple):
    """A trainer and its data, before training."""

    trainer: Any
    train: Any
    valid: Any
    test: Any

    @property
    def model(self) -> LlamaRec:
        return self.trainer.model


def run_of(settings: dict, **changes: Any) -> Run:
    """What RecBole's ``run_recbole`` makes before it trains."""
    config = Config(config_dict=settings | changes)
    loaders = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, loaders[0].dataset)
    return Run(get_trainer(config["MODEL_TYPE"], config["model"])(config, model), *loaders)


def untrained(settings: dict, **changes: Any) -> LlamaRec:
    """A model whose retriever is random."""
    return run_of(settings, **changes).model.eval()


def files(settings: dict) -> set[str]:
    """Endings of what a run left in its checkpoint directory."""
    folder = Path(settings["checkpoint_dir"])
    return {file.name.split(".", 1)[1] for file in folder.iterdir()}


def batch_of(loader) -> tuple[Any, torch.Tensor]:
    """The only batch of an evaluation loader, and each row's target ``[B]``."""
    interaction, _, _, targets = next(iter(loader))
    return interaction, targets


def order_of(scores: torch.Tensor) -> torch.Tensor:
    """Item ids, best first, ``[B, N]``."""
    return scores.argsort(dim=1, descending=True)


def is_tuned(adapter: dict[str, torch.Tensor]) -> bool:
    """Whether an adapter does anything: its second matrices begin as zeros."""
    return any(bool((t != 0).any()) for name, t in adapter.items() if "lora_B" in name)


def language_model_of(folder: Path, **settings: Any) -> LanguageModel:
    """A language model that scores 7 of 50 titles, with an adapter that does nothing yet."""
    given = {
        "llm": LanguageModelSettings(name_or_path=str(folder), dtype="float32"),
        "lora": LoraSettings(r=4, dropout=0.0),
        "rerank_candidates": 7,
    }
    keys = LlamaRecSettings(**(given | settings))
    return LanguageModel(ScorerParts(keys, None, ["", *titles(50)], 51, torch.device("cpu"), 1))


def randomise_adapter(scorer: LanguageModel) -> None:
    """Give the adapter weights that do something."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(weight.shape, generator=generator) * 0.1
        for name, weight in scorer.adapter_weights().items()
    }
    scorer.load_adapter_weights(weights)


def pools_of(n_rows: int, n_candidates: int = 7, seed: int = 0):
    """Histories of different lengths and candidates among 50 items, and targets ``[B, K]``."""
    generator = np.random.default_rng(seed)
    histories = [
        (generator.permutation(50)[: generator.integers(0, 25)] + 1).tolist() for _ in range(n_rows)
    ]
    pools = [(generator.permutation(50)[:n_candidates] + 1).tolist() for _ in range(n_rows)]
    places = generator.integers(0, n_candidates, n_rows)
    return histories, pools, np.eye(n_candidates, dtype=np.float32)[places]
