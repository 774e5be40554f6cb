"""Fuzz the settings: each value is taken and works, or is refused by an error that names its key.

``fuzzed_values.check`` reads a pair of a key and a value, as a run does before anything else.
``run`` starts a small run (data and a random two-layer Llama of the tests) with one that was taken:
none may fail later than before training, and then by an error that names the key.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzed_values import NESTED, Pair, check, pairs
from recbole.config import Config
from recbole.trainer import Trainer
from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

from helpers import checkpoint_of, tiny_settings, write_dataset  # noqa: E402
from runs import run_of  # noqa: E402
from tiny_llama import write_tiny_llama  # noqa: E402

from recbole_llamarec.integration import config_shims  # noqa: E402
from recbole_llamarec.keys import shown  # noqa: E402
from recbole_llamarec.recommender import Recommender  # noqa: E402
from recbole_llamarec.tuning import loop  # noqa: E402


def base_values(folder: Path, llama: Path) -> dict[str, Any]:
    """Settings of the small run, merged with RecBole's defaults as they are before any check."""
    merged: dict[str, Any] = {}
    with mock.patch.object(config_shims, "check_values", lambda _, values: merged.update(values)):
        Config(config_dict=small_settings(folder, llama))
    return merged


def small_settings(folder: Path, llama: Path) -> dict[str, Any]:
    """Settings of a run of less than a second, whose data they write."""
    settings = tiny_settings(folder, llama)
    shutil.rmtree(folder / "data")
    write_dataset(folder / "data", n_users=16)
    small = {"train_max_samples": 8, "train_eval_rows": 4, "rerank_fusion": "auto"}
    retriever = {"epochs": 1, "train_batch_size": 8, "embedding_size": 8, "state_size": 8}
    return settings | small | {NESTED: retriever | {"inner_size": 8}}


def run(llama: Path, pair: Pair) -> str:
    """What becomes of a pair, taken when it was read, in the small run.

    Args:
        llama: the language model.
        pair: put into its settings.

    Returns:
        ``ran``, ``refused`` (before training, by an error that names the key), or the fault.
    """
    began: list[bool] = []
    with tempfile.TemporaryDirectory() as folder, quiet(Path(folder)), noting_training(began):
        try:
            settings = small_settings(Path(folder), llama)
            started = run_of(pair.put(settings))
            started.trainer.fit(started.train, started.valid)
            result = started.trainer.evaluate(started.test)
            if result and not all(map(math.isfinite, result.values())):
                return f"not finite: {dict(result)}"
            files = Path(started.trainer.saved_model_file).parent
            data = pair.put(settings)["data_path"]
            recommender = Recommender.from_checkpoint(checkpoint_of(files), data)
            recommender.recommend([recommender.tokens[1:4].tolist()], k=2)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if began:
                return f"after training began, {text}"
            return "refused" if pair.key in text else f"no key in the error, {text}"
    return "ran"


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Within, a run writes into a folder and says nothing."""
    before, arguments, level = Path.cwd(), sys.argv, logging.root.manager.disable
    os.chdir(folder)
    sys.argv = ["run"]
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(level)
        os.chdir(before)
        sys.argv = arguments
        logging.root.handlers.clear()


@contextlib.contextmanager
def noting_training(began: list[bool]) -> Iterator[None]:
    """Within, the first step of training adds to a list."""
    epoch, step = Trainer._train_epoch, loop.optimizer_step

    def noted(original):
        def call(*arguments, **options):
            began.append(True)
            return original(*arguments, **options)

        return call

    with (
        mock.patch.object(Trainer, "_train_epoch", noted(epoch)),
        mock.patch.object(loop, "optimizer_step", noted(step)),
    ):
        yield


def accepted(base: Mapping[str, Any], n: int, seed: int) -> list[Pair]:
    """Different pairs that are taken when they are read, and whose runs are small.

    Args:
        base: right settings, from :func:`base_values`.
        n: how many, at most as many as 20 n random pairs and 2,000 more have.
        seed: of the pairs.
    """
    taken = {
        (pair.key, pair.is_nested, repr(pair.value)): pair
        for pair in pairs(20 * n + 2000, seed)
        if check(base, pair) == "accepted" and pair.is_small
    }
    return random.Random(seed).sample(list(taken.values()), min(n, len(taken)))


def campaign(n_runs: int, seed: int) -> int:
    """Read 10,000 pairs, run some of those that were taken, print what came of them.

    Args:
        n_runs: pairs to run.
        seed: of all choices.

    Returns:
        the number of findings.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        llama = write_tiny_llama(Path(folder) / "llama")
        base = base_values(Path(folder), llama)
        for what, tried, outcome_of in (
            ("values read", list(pairs(10_000, seed)), lambda pair: check(base, pair)),
            ("values run", accepted(base, n_runs, seed), lambda pair: run(llama, pair)),
        ):
            outcomes: Counter[str] = Counter()
            for pair in tqdm(tried, unit="value", ncols=100, desc=what):
                outcome = outcome_of(pair)
                is_right = outcome in ("accepted", "refused", "ran")
                outcomes[outcome if is_right else "finding"] += 1
                if not is_right:
                    findings.append([pair.full_key, shown(pair.value), outcome[:300]])
            counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            print(f"{len(tried)} {what}: {counts}", flush=True)
    if findings:
        print(tabulate(findings, headers=["key", "value", "finding"], tablefmt="github"))
    return len(findings)
