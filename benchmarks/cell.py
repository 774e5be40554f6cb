"""Runs one cell of a suite in a process of its own: ``python benchmarks/cell.py SPEC RESULT``.

SPEC is a JSON file that ``run.py`` writes; RESULT appears when the cell is finished.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import cpu_name
from recbole.config import Config
from recbole.data import create_dataset
from recbole.utils import get_model, get_trainer, init_logger, init_seed

from recbole_llamarec.data.split import prepare_split

PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas", "recbole-llamarec")


def settings_of(cell: dict[str, Any], data: str, work: Path) -> dict[str, Any]:
    """RecBole's settings for a cell; every model runs inside LlamaRec, on the same terms."""
    common = {
        "seed": cell["seed"],
        "data_path": data,
        "checkpoint_dir": str(work),
        "show_progress": False,
        **cell["run_settings"],
    }
    if cell["model"] != "LlamaRec":
        return common | {
            "ranking_method": "none",
            "retriever": cell["model"],
            "retriever_config": cell["settings"],
        }
    retriever = json.loads((work.parent / cell["retriever"] / "cell.json").read_text())
    return common | {
        "retriever": retriever["model"],
        "retriever_config": retriever["settings"],
        "retriever_checkpoint": str(retriever_file(work.parent / cell["retriever"])),
        **cell["settings"],
    }


def retriever_file(work: Path) -> Path:
    """The retriever's checkpoint that a finished cell left in its folder."""
    return work / "retriever.pth"


def run_cell(cell: dict[str, Any], data: str, work: Path) -> tuple[dict[str, Any], Any]:
    """Train and evaluate by RecBole's own functions.

    Returns:
        the result, and the per-user metrics as a DataFrame.
    """
    start = time.time()
    config = Config(
        model="LlamaRec", dataset=cell["dataset"], config_dict=settings_of(cell, data, work)
    )
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    split, (train, valid, test) = prepare_split(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    curve: list[tuple[float, float]] = []
    prepared = time.time()

    def note(_, score: float) -> None:
        curve.append((round(time.time() - prepared, 1), score))

    score, valid_result = trainer.fit(train, valid, callback_fn=note)
    trained = time.time()
    trainer.evaluate(test, load_best_model=False)
    evaluated = time.time()
    report = trainer.report
    keep_retriever(work)
    return {
        "cell": cell,
        "split": asdict(split),
        "valid_score": score,
        "valid": valid_result,
        "test": report.retriever if report.llamarec is None else report.llamarec,
        "test_retriever": report.retriever,
        "retrieved": report.llamarec_on_retrieved or report.retriever_on_retrieved,
        "retrieved_retriever": report.retriever_on_retrieved,
        "n_rows": report.n_rows,
        "n_retrieved": report.n_retrieved,
        "curve": curve,
        "parameters": sum(p.numel() for p in model.retriever.parameters()),
        "seconds": {
            "prepare": round(prepared - start, 1),
            "train": round(trained - prepared, 1),
            "evaluate": round(evaluated - trained, 1),
        },
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "machine": cpu_name(),
        "versions": {name: installed(name) for name in PACKAGES}
        | {"python": sys.version.split()[0]},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }, report.users


def keep_retriever(work: Path) -> None:
    """Leave of the checkpoints only the retriever's, under a name that another cell can tell."""
    for file in work.glob("LlamaRec-*.*.pth"):
        file.replace(retriever_file(work))
    for file in work.glob("LlamaRec-*.pth"):
        file.unlink()


def installed(package: str) -> str:
    """The version of an installed package, or of the checkout."""
    if package == "recbole-llamarec":
        from recbole_llamarec import __version__

        return __version__
    return version(package)


def main() -> None:
    """Run the cell of SPEC; RESULT and the per-user file beside it are renamed into place."""
    spec_file, result_file = map(Path, sys.argv[1:3])
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    spec = json.loads(spec_file.read_text())
    work = Path(spec["work"])
    work.mkdir(parents=True, exist_ok=True)
    (work / "cell.json").write_text(json.dumps(spec["cell"]))
    result, users = run_cell(spec["cell"], spec["data"], work)
    users.to_csv(users_file(result_file), index=False)
    unfinished = result_file.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1))
    unfinished.replace(result_file)


def users_file(result_file: Path) -> Path:
    """The file of per-user metrics that belongs to a result."""
    return result_file.with_name(result_file.name.removesuffix(".json") + ".users.csv.gz")


if __name__ == "__main__":
    main()
