"""Trains the adapter that the package ships for a data set, from nothing.

    python benchmarks/adapters.py amazon-beauty --data dataset

Its parts stand in adapters.yaml; each goes on from the adapter of the one before, and all have the
retriever of the first. What has been trained is not trained again, and a part that was stopped goes
on: give the same command. The test set is read by none. The last part's adapter is written in
bfloat16, with its card, into a folder that ``lora_adapter: auto`` finds.
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
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

import recbole_llamarec  # noqa: E402, F401  registers the models
from recbole_llamarec.adapters.find import SHIPPED  # noqa: E402
from recbole_llamarec.checksums import SUMS  # noqa: E402
from recbole_llamarec.files import folder_written_whole  # noqa: E402

WEIGHTS = "adapter_model.safetensors"
RECIPES = Path(__file__).with_suffix(".yaml")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    recipes = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    parser.add_argument("dataset", choices=recipes)
    parser.add_argument("--data", help="RecBole's data_path; its own data set if left out")
    parser.add_argument("--work", type=Path, default=Path("saved/adapters"), help="of the parts")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the adapters")
    options = parser.parse_args(arguments)
    recipe, work = recipes[options.dataset], options.work / options.dataset
    common = {"show_progress": False, "lora_adapter": None, **recipe["settings"]}
    if options.data:
        common["data_path"] = options.data
    adapter = work  # of the part before; the first one has none
    for number, part in enumerate(recipe["parts"], start=1):
        folder = work / f"part-{number}"
        own = {"checkpoint_dir": str(folder)}
        if number > 1:
            own["lora_adapter"] = str(adapter)
            own["retriever_checkpoint"] = str(next((work / "part-1").glob("*.LRURec.pth")))
        if number < len(recipe["parts"]):
            own["rerank_fusion"] = None  # only the last part's is fitted
        trained = [] if list(folder.glob("*.resume.pt")) else list(folder.glob("*.adapter"))
        adapter = trained[0] if trained else train(options.dataset, {**common, **own}, part)
    ship(adapter, options.out / options.dataset)


def train(dataset: str, settings: Mapping[str, Any], part: Mapping[str, Any]) -> Path:
    """Tune one part.

    Args:
        dataset: its name.
        settings: of the run.
        part: its file in ``properties/``, and what differs from that.

    Returns:
        the folder of its adapter.
    """
    own = {key: value for key, value in part.items() if key != "properties"}
    command, sys.argv = sys.argv, sys.argv[:1]  # RecBole reads the command line
    config = Config(
        model="LlamaRec",
        dataset=dataset,
        config_file_list=[str(ROOT / "properties" / part["properties"])],
        config_dict={**settings, **own},
    )
    sys.argv = command  # the card names it
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train_data, valid_data)
    trainer.complete()
    return Path(trainer.saved_model_file).with_suffix(".adapter")


def ship(adapter: Path, into: Path) -> None:
    """Copy an adapter, with its weights rounded to bfloat16."""
    weights = {name: own.to(torch.bfloat16) for name, own in load_file(adapter / WEIGHTS).items()}
    with folder_written_whole(into) as staging:
        for file in adapter.iterdir():
            if file.name not in (WEIGHTS, SUMS):
                shutil.copy(file, staging)
        save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})
    print(f"{into}: {(into / WEIGHTS).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
