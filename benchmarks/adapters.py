"""Trains the adapter that the package ships for a data set, from nothing.

    python benchmarks/adapters.py amazon-beauty --data dataset

How stands in adapters.yaml. Where a recipe starts from another one's adapter that is not in the
folder, that one is trained before. A run that was stopped goes on: give the same command. The test
set is not read. The adapter is written in bfloat16, with its card, into a folder that
``lora_adapter: auto`` finds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

import recbole_llamarec  # noqa: E402, F401  registers the models
from recbole_llamarec.adapters.find import SHIPPED  # noqa: E402
from recbole_llamarec.checksums import SUMS  # noqa: E402
from recbole_llamarec.files import folder_written_whole  # noqa: E402
from recbole_llamarec.fitting import fitted  # noqa: E402
from recbole_llamarec.integration.values import no_command_line  # noqa: E402
from recbole_llamarec.ranking.model.adapter_files import WEIGHTS_FILE, read_adapter  # noqa: E402

RECIPES = Path(__file__).with_suffix(".yaml")
SETTINGS = {  # of every recipe; the last state is kept
    **{"metrics": ["NDCG", "Recall"], "topk": [10], "show_progress": False},
    **{"train_eval_steps": None, "train_batch_tokens": 2048},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    recipes = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    parser.add_argument("recipe", choices=recipes, help="a data set's name, or of a second adapter")
    parser.add_argument("--data", help="RecBole's data_path; its own data set if left out")
    parser.add_argument("--retriever", help="a checkpoint, in place of training it")
    parser.add_argument("--work", default="saved/adapters", help="folder of the run's files")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the adapters")
    options = parser.parse_args(arguments)
    for name in lineage(recipes, options.recipe):
        if name != options.recipe and (options.out / name).is_dir():
            continue
        recipe = dict(recipes[name])
        dataset = recipe.pop("dataset", name)
        properties = ROOT / "properties" / recipe.pop("properties")
        start = recipe.pop("starts_from", None)
        settings = SETTINGS | {
            "lora_adapter": start and str(options.out / start),
            "checkpoint_dir": options.work,
            "retriever_checkpoint": options.retriever,
            **recipe,
        }
        if options.data:
            settings["data_path"] = options.data
        ship(train(dataset, properties, settings), options.out / name)


def lineage(recipes: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Names of the recipes that one starts from, the first one first, and its own."""
    start = recipes[name].get("starts_from")
    return [*(lineage(recipes, start) if start else []), name]


def train(dataset: str, properties: Path, settings: Mapping[str, Any]) -> Path:
    """Tune an adapter, and fit the fusion for its card.

    Args:
        dataset: its name.
        properties: the run's property file.
        settings: beside the file's.

    Returns:
        the adapter's folder.
    """
    with no_command_line():  # the card names it
        config = Config(
            model="LlamaRec",
            dataset=dataset,
            config_file_list=[str(properties)],
            config_dict=dict(settings),
        )
    return Path(fitted(config).saved_model_file).with_suffix(".adapter")


def ship(adapter: Path, into: Path) -> None:
    """Copy an adapter, with its weights rounded to bfloat16."""
    _, weights = read_adapter(adapter)
    rounded = {name: own.to(torch.bfloat16) for name, own in weights.items()}
    with folder_written_whole(into) as staging:
        for file in adapter.iterdir():
            if file.name not in (WEIGHTS_FILE, SUMS):
                shutil.copy(file, staging)
        save_file(rounded, staging / WEIGHTS_FILE, metadata={"format": "pt"})
    print(f"{into}: {(into / WEIGHTS_FILE).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
