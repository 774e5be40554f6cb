"""Runs one cell of a suite in a process of its own: ``python benchmarks/cell.py SPEC``.

SPEC is a JSON file that ``run.py`` writes into the cell's work folder; the cell's line appears
there, too, when the cell is finished, and ``run.py`` adds it to the suite's results.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from machine import cpu_name
from recbole.config import Config
from recbole.data import create_dataset
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from results import write_whole
from stages import fusion_summary, tested_stages, users_table, validated_stages
from suite import CELL_LINE, CELL_USERS, Cell, retriever_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec import __version__
from recbole_llamarec.data.split import prepare_split

PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "pandas")


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
    retriever_work = work.parent / cell["retriever"]
    retriever = json.loads((retriever_work / "spec.json").read_text())["cell"]
    return common | {
        "retriever": retriever["model"],
        "retriever_config": retriever["settings"],
        "retriever_checkpoint": str(retriever_file(retriever_work)),
        **cell["settings"],
    }


def run_cell(
    cell: dict[str, Any], data: str, work: Path
) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Train and evaluate by RecBole's own functions.

    Returns:
        the cell's line; and each user's metrics by stage, ``None`` without a test and for a
        retriever alone, which is compared with nothing.
    """
    start = time.time()
    remove_run(work)  # what was stopped starts anew, so that times are those of a whole run
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
    tested: dict[str, Any] = {}
    users = None
    if not cell["validation_only"]:
        trainer.evaluate(test, load_best_model=False)
        report = trainer.report
        tested = tested_stages(report)
        tested |= {"n_rows": report.n_rows, "n_retrieved": report.n_retrieved}
        stages = [stage.name for stage in report.stages]
        users = users_table(report.users, stages) if len(stages) > 1 else None
    evaluated = time.time()
    keep_retriever(work)
    line = {
        "id": Cell(**cell).id,
        **cell,
        "split": asdict(split),
        "valid_score": score,
        "valid": valid_result,
        "valid_stages": validated_stages(trainer.journal.validation),
        "fusion": fusion_summary(model.fusion),
        **tested,
        "curve": curve,
        "parameters": sum(p.numel() for p in model.retriever.parameters()),
        "seconds": {
            "prepare": round(prepared - start, 1),
            "train": round(trained - prepared, 1),
            "evaluate": round(evaluated - trained, 1),
            "stages": {name: round(took, 1) for name, took in trainer.journal.seconds.items()},
        },
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "machine": cpu_name(),
        "versions": {name: version(name) for name in PACKAGES}
        | {"recbole-llamarec": __version__, "python": sys.version.split()[0]},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return line, users


def keep_retriever(work: Path) -> None:
    """Leave of a run's files only the retriever's, under a name that another cell can tell."""
    for file in work.glob("LlamaRec-*.*.pth"):
        file.replace(retriever_file(work))
    remove_run(work)


def remove_run(work: Path) -> None:
    """Remove checkpoints, adapters and states to go on from."""
    for path in work.glob("LlamaRec-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def main() -> None:
    """Run the cell of SPEC; its line appears beside it, behind its users' metrics."""
    spec_file = Path(sys.argv[1])
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    spec, work = json.loads(spec_file.read_text()), spec_file.parent
    line, users = run_cell(spec["cell"], spec["data"], work)
    if users is not None:
        users.to_csv(work / CELL_USERS, index=False)
    write_whole(work / CELL_LINE, json.dumps(line).encode())


if __name__ == "__main__":
    main()
