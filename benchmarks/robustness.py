"""Kill a small run at random moments and let it go on: does it end as if nothing had happened?

    python benchmarks/robustness.py --kills 30
    python benchmarks/robustness.py --settings 300

Each trial starts the same small run (LRURec, letters, tuned, fused; data and a random two-layer
Llama of the tests), kills it by SIGKILL after a random time, starts the same command again, and
compares the users' table, the test metrics and the files that are left with those of a run that
was never interrupted. A trial may be killed several times before it is let go on.

``--settings`` reads 10,000 fuzzed values instead and runs some of those that are taken; see
``fuzzed_settings.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from fuzzed_settings import campaign  # noqa: E402
from helpers import tiny_settings  # noqa: E402
from tiny_llama import write_tiny_llama  # noqa: E402

SETTINGS = {
    "epochs": 8,
    "train_max_samples": 64,
    "train_eval_steps": 3,
    "train_eval_rows": 20,
    "rerank_fusion": "auto",
    "save_every_minutes": 0.001,
    "llm_batch_tokens": 512,
    "retriever_config": {"epochs": 60, "stopping_step": 60, "train_batch_size": 16},
}
RESULT = re.compile(r"test result: (.*)")


@dataclass(frozen=True)
class Outcome:
    """What a run that was let go on to its end has left.

    Attributes:
        metrics: the line of its test metrics.
        users: digest of the users' table.
        files: names in ``saved/`` without the run's own name.
        seconds: of the last process.
    """

    metrics: str
    users: str
    files: tuple[str, ...]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials and print one line each; the exit code is 1 with findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="trials")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--settings", type=int, default=0, help="fuzzed values to run, no kills")
    options = parser.parse_args(arguments)
    if options.settings:
        raise SystemExit(min(1, campaign(options.settings, options.seed)))
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        llama = write_tiny_llama(root / "llama")
        expected = finish(prepared(root / "reference", llama))
        lines, n_findings = [], 0
        for trial in range(options.kills):
            run = prepared(root / f"trial-{trial}", llama)
            moment = generator.uniform(0.0, expected.seconds)
            phase = killed_after(run, moment)
            outcome = finish(run)
            faults = findings(expected, outcome)
            n_findings += bool(faults)
            lines.append(
                [trial + 1, f"{moment:.1f}", phase, f"{outcome.seconds:.1f}", faults or "-"]
            )
            print(lines[-1], flush=True)
    headers = ["kill", "after s", "last phase", "resumed run, s", "finding"]
    print(tabulate(lines, headers=headers, tablefmt="github"))
    print(
        f"{options.kills} kills, {n_findings} findings; an uninterrupted run takes "
        f"{expected.seconds:.1f} s: {expected.metrics}"
    )
    raise SystemExit(min(1, n_findings))


def prepared(folder: Path, llama: Path) -> Path:
    """A folder with data and settings of the small run."""
    settings = tiny_settings(folder, llama) | SETTINGS
    for key in ("model", "dataset"):
        settings.pop(key)
    settings |= {"data_path": "data", "checkpoint_dir": "saved"}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def start(folder: Path) -> subprocess.Popen:
    """Start the run's command in a process group of its own."""
    command = [sys.executable, str(ROOT / "run_recbole.py"), "--model=LlamaRec", "--dataset=tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [*command, "--config_files=run.yaml"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def killed_after(folder: Path, seconds: float) -> str:
    """Kill the run after some seconds; what its log says of the phase that it was in."""
    process = start(folder)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log = (folder / "log.txt").read_text(encoding="utf-8")
    phases = {
        "test": "Result",
        "test of all stages": "Loading model structure",
        "fusion": "Saving the adapter",
        "tuning": "Stage 2 of 2",
        "retriever": "Stage 1 of 2",
    }
    return next((phase for phase, words in phases.items() if words in log), "start")


def finish(folder: Path) -> Outcome:
    """Run the command to its end.

    Raises:
        RuntimeError: it fails.
    """
    begin = time.perf_counter()
    process = start(folder)
    if process.wait():
        raise RuntimeError((folder / "log.txt").read_text(encoding="utf-8")[-3000:])
    seconds = time.perf_counter() - begin
    log = (folder / "log.txt").read_text(encoding="utf-8")
    tables = sorted((folder / "saved").glob("*.users.csv"), key=lambda file: file.stat().st_mtime)
    names = sorted(file.name.split(".", 1)[1] for file in (folder / "saved").iterdir())
    digest = hashlib.sha256(tables[-1].read_bytes()).hexdigest()
    return Outcome(RESULT.findall(log)[-1], digest, tuple(names), seconds)


def findings(expected: Outcome, outcome: Outcome) -> str:
    """How a resumed run differs from one that was not interrupted; empty where it does not."""
    faults = []
    if outcome.metrics != expected.metrics:
        faults.append(f"metrics {outcome.metrics}")
    if outcome.users != expected.users:
        faults.append("users' table")
    # a run that was complete before it was killed stays, whole, beside the one that came after it
    if outcome.files not in (expected.files, tuple(sorted(2 * expected.files))):
        faults.append(f"files {outcome.files}")
    return "; ".join(faults)


if __name__ == "__main__":
    main()
