"""Flips single bits in the files that a run leaves: is each one noticed when the file is loaded?

A finding is a file that loads without an error and holds other values than before. A bit whose
flip changes nothing that is loaded, such as one of the padding in an archive, is none.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recbole_llamarec.files import read_tensors
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.ranking.model.adapter_files import read_adapter
from recbole_llamarec.tuning.score_log import SCORES, ScoreLog
from recbole_llamarec.tuning.state import RESUME, read_state


@dataclass
class Tally:
    """How the flips in a kind of file went.

    Attributes:
        refused: loading was an error that names the file.
        equal: loaded, and nothing was different.
        findings: file, byte and bit of the others, and what happened.
    """

    refused: int
    equal: int
    findings: list[str]


def loaders(run: Path, interrupted: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """By kind, a file or folder and the function of the package that reads it.

    Args:
        run: checkpoint of a finished run.
        interrupted: state of an interrupted one.
    """
    scores = interrupted.with_name(interrupted.name.replace(RESUME, SCORES.format(rank=0)))
    (retriever,) = run.parent.glob(f"{run.stem}.*.pth")
    return {
        "checkpoint": (run, load_checkpoint),
        "retriever's checkpoint": (retriever, load_checkpoint),
        "adapter": (run.with_suffix(".adapter"), read_adapter),
        "state": (interrupted, read_state),
        "scored batches": (scores, partial(load_scores, name=read_tensors(scores)["name"])),
    }


def load_scores(file: Path, name: str) -> Any:
    """What a pass of that name, which goes on, would take for scored.

    Raises:
        ValueError: nothing; the log has said why, and the rows are scored again.
    """
    log = ScoreLog(file.with_name(file.name.removesuffix(SCORES.format(rank=0))), 0, 1, 1.0)
    log.begin(name)
    scores = []
    while (batch := log.next()) is not None:
        scores.append(batch)
    if not scores:
        raise ValueError(f"{file} is not taken up")
    return scores


def flip_bits(
    path: Path, load: Callable[[Path], Any], n_flips: int, generator: random.Random
) -> Tally:
    """Load a file, or a folder, once for each of some flipped bits.

    Args:
        path: what is loaded; it stays as it is.
        load: reads it.
        n_flips: how many; in a folder, each of its files has the same chance.
        generator: chooses files and bits.
    """
    expected = load(path)
    tally = Tally(0, 0, [])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
        files = sorted(copy.iterdir()) if copy.is_dir() else [copy]
        for _ in range(n_flips):
            file = generator.choice(files)
            content = file.read_bytes()
            place, bit = generator.randrange(len(content)), generator.randrange(8)
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            where = f"{file.name}, byte {place} of {len(content)}, bit {bit}"
            try:
                is_equal = same(load(copy), expected)
            except (ValueError, FileNotFoundError) as error:
                if path.name in str(error):
                    tally.refused += 1
                else:
                    tally.findings.append(f"{where}: the error does not name it: {error}")
            except Exception as error:
                tally.findings.append(f"{where}: {error!r}")
            else:
                tally.equal += is_equal
                if not is_equal:
                    tally.findings.append(f"{where}: loaded as other values")
            file.write_bytes(content)
    return tally


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and plain values are equal, to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        is_like = one.dtype == other.dtype and one.shape == other.shape
        return is_like and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)  # NaN
