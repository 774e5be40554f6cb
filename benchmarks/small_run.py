"""The small run of the tests as processes of their own, for scripts that kill them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

from helpers import tiny_settings  # noqa: E402


def prepared(folder: Path, llama: Path, settings: Mapping[str, Any], dataset: str = "tiny") -> Path:
    """Make a folder with the data and the settings of a run.

    Args:
        folder: where it is to run.
        llama: the language model.
        settings: beside those of the tests' small run.
        dataset: the tests' small one, or one that RecBole has itself, with its own columns.
    """
    all_settings = tiny_settings(folder, llama) | settings
    all_settings |= {"data_path": "data", "checkpoint_dir": "saved", "dataset": dataset}
    left_out = ["model"] if dataset == "tiny" else ["model", "data_path", "load_col"]
    for key in left_out:
        del all_settings[key]
    (folder / "run.yaml").write_text(yaml.safe_dump(all_settings), encoding="utf-8")
    return folder


def start(folder: Path, *options: str, log: str = "log.txt") -> subprocess.Popen:
    """Start the run's command in a process group of its own.

    Args:
        folder: as it was prepared.
        options: of the command, beside the model, the data set and the settings' file.
        log: file in the folder that the output is added to.
    """
    settings = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    command = [sys.executable, str(ROOT / "run_recbole.py"), "--model=LlamaRec"]
    command += [f"--dataset={settings['dataset']}", "--config_files=run.yaml", *options]
    with (folder / log).open("a") as opened:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=opened,
            stderr=opened,
            start_new_session=True,
        )
