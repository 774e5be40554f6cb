"""Attack a small run, seeded and with counts: kill it at random moments, flip bits in its files.

    python benchmarks/robustness.py --kills 30
    python benchmarks/robustness.py --flips 200
    python benchmarks/robustness.py --settings 10000
    python benchmarks/robustness.py --damaged 200
    python benchmarks/robustness.py --soak 10

Kills: does a run that goes on end as if nothing had happened? Each trial starts the same small run
(LRURec, letters, tuned, fused; data and a random two-layer Llama of the tests), kills it by SIGKILL
after a random time, starts the same command again, and compares the users' table, the test metrics
and the files that are left with those of a run that was never interrupted.

Settings: is each value of a key accepted, or refused by an error that names the key? One in twenty
of the accepted ones is put into a small run, which may not fail later. See ``fuzzed_settings.py``.

Flips: is each flipped bit noticed when the file is loaded? See ``robustness_flips.py``. Damages: do
commands say of a damaged table or record which file and line it is? See ``robustness_damage.py``.
Soak: does the service answer under load as when it is quiet? See ``robustness_soak.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

import fuzzed_settings  # noqa: E402
from helpers import checkpoint_of  # noqa: E402
from robustness_damage import damaged, targets  # noqa: E402
from robustness_flips import flip_bits, loaders  # noqa: E402
from robustness_soak import soak, summary  # noqa: E402
from small_run import prepared, start  # noqa: E402
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
EMBEDDED = "embedded"  # the value of llm_name_or_path
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
    parser.add_argument("--kills", type=int, default=0, help="runs that are killed")
    parser.add_argument("--flips", type=int, default=0, help="flipped bits in each kind of file")
    parser.add_argument("--settings", type=int, default=0, help="values of keys")
    parser.add_argument("--damaged", type=int, default=0, help="damaged versions of each file")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="load on the service")
    parser.add_argument("--checkpoint", type=Path, help="of the soak; a small one if left out")
    parser.add_argument("--data-path", type=Path, help="its folder of data sets (dataset/)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of a score in the soak")
    parser.add_argument("--seed", type=int, default=1, help="of moments, bits, values and requests")
    options = parser.parse_args(arguments)
    campaigns = {
        kills: options.kills,
        flips: options.flips,
        fuzzed_settings.campaign: options.settings,
        damages: options.damaged,
    }
    if not (any(campaigns.values()) or options.soak):
        parser.error("give --kills, --flips, --settings, --damaged or --soak")
    n_findings = soaked(options) if options.soak else 0
    for campaign, count in campaigns.items():
        if count:
            with tempfile.TemporaryDirectory() as folder:
                llama = write_tiny_llama(Path(folder) / "llama")
                n_findings += campaign(Path(folder), llama, count, random.Random(options.seed))
    raise SystemExit(min(1, n_findings))


def damages(root: Path, llama: Path, count: int, generator: random.Random) -> int:
    """Damage the files that commands read; returns the findings."""
    finish(prepared(root / "run", llama, SETTINGS))
    checkpoint = checkpoint_of(root / "run" / "saved")
    lines, faults = [], []
    for kind, target in targets(checkpoint, root / "run" / "data", root).items():
        tally = damaged(target, count, generator)
        faults += [f"{kind}: {finding}" for finding in tally.findings]
        lines.append([kind, count, tally.refused, tally.equal, len(tally.findings)])
    headers = ["file", "damages", "refused", "read, nothing different", "findings"]
    print(tabulate(lines, headers=headers, tablefmt="github"))
    print("\n".join(faults))
    return len(faults)


def soaked(options: argparse.Namespace) -> int:
    """Put the service under load; returns 1 with findings.

    Without a checkpoint it serves the embedded language model, beside a small retriever.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, data_path = options.checkpoint, options.data_path
        if checkpoint is None:
            root = prepared(Path(folder), Path(EMBEDDED), SETTINGS)
            settings = yaml.safe_load((root / "run.yaml").read_text(encoding="utf-8"))
            settings |= {"epochs": 0, "rerank_fusion": 0.5}
            (root / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
            finish(root)
            checkpoint, data_path = checkpoint_of(root / "saved"), root / "data"
        tally = soak(checkpoint, data_path, options.soak, options.seed, options.tolerance)
    print("\n".join(summary(tally)))
    return int(bool(tally.wrong))


def flips(root: Path, llama: Path, count: int, generator: random.Random) -> int:
    """Flip bits in the files of a finished and of an interrupted run; returns the findings."""
    finished, interrupted = (prepared(root / name, llama, SETTINGS) for name in ("finished", "cut"))
    finish(finished)
    checkpoint = checkpoint_of(finished / "saved")
    lines, faults = [], []
    for kind, (path, load) in loaders(checkpoint, killed_while_scoring(interrupted)).items():
        tally = flip_bits(path, load, count, generator)
        faults += [f"{kind}: {finding}" for finding in tally.findings]
        lines.append([kind, count, tally.refused, tally.equal, len(tally.findings)])
    headers = ["file", "flips", "refused", "loaded, nothing different", "findings"]
    print(tabulate(lines, headers=headers, tablefmt="github"))
    print("\n".join(faults))
    return len(faults)


def kills(root: Path, llama: Path, count: int, generator: random.Random) -> int:
    """Kill runs and let them go on; returns how many of them end otherwise."""
    expected = finish(prepared(root / "reference", llama, SETTINGS))
    lines, n_findings = [], 0
    for trial in range(count):
        run = prepared(root / f"trial-{trial}", llama, SETTINGS)
        moment = generator.uniform(0.0, expected.seconds)
        phase = killed_after(run, moment)
        outcome = finish(run)
        faults = findings(expected, outcome)
        n_findings += bool(faults)
        lines.append([trial + 1, f"{moment:.1f}", phase, f"{outcome.seconds:.1f}", faults or "-"])
        print(lines[-1], flush=True)
    headers = ["kill", "after s", "last phase", "resumed run, s", "finding"]
    print(tabulate(lines, headers=headers, tablefmt="github"))
    print(
        f"{count} kills, {n_findings} findings; an uninterrupted run takes "
        f"{expected.seconds:.1f} s: {expected.metrics}"
    )
    return n_findings


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


def killed_while_scoring(folder: Path) -> Path:
    """Kill the run when it has written a state and scored batches; returns the state's file.

    Raises:
        RuntimeError: the run ended before.
    """
    process = start(folder)
    saved = folder / "saved"
    while not (list(saved.glob("*.resume.pt")) and list(saved.glob("*.scores-0.pt"))):
        if process.poll() is not None:
            raise RuntimeError((folder / "log.txt").read_text(encoding="utf-8")[-3000:])
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (state,) = saved.glob("*.resume.pt")
    return state


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
