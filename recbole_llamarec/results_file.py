"""The file of ``recommend --out``: it is written only where it is this run's own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_llamarec.checksums import sha256_of
from recbole_llamarec.files import flush, naming, written_whole
from recbole_llamarec.version import __version__

if TYPE_CHECKING:
    from recbole_llamarec.recommender import Recommendation

BEGINNING = b'[{"item": '  # of each line
ENDING = ".run.json"  # of the file beside it that says what it holds


class ResultsFile:
    """JSON lines, one for each history of a file, and a small file beside them.

    The small file, ``OUT.run.json``, names the checkpoint, the histories and ``k`` by digest or
    value. Results are added only where it names the same ones and all lines are results. Nothing
    is written before the first results are there.

    Args:
        out: where the results go.
        checkpoint: file of the model.
        histories: file with one history a line.
        k: items of each result.
        batch: histories that are ranked at a time; an interrupted run goes on behind a whole
            batch, since scores may differ by rounding with what else is in it.

    Attributes:
        n_done: histories whose results are there and stay.
        n_histories: lines of the file of histories.

    Raises:
        FileNotFoundError: a file that is read, or the folder to write to, does not exist.
        ValueError: ``out`` is there and is not of this run.
    """

    def __init__(self, out: Path, checkpoint: Path, histories: Path, k: int, batch: int) -> None:
        for option, file in (("--checkpoint", checkpoint), ("--histories", histories)):
            if not file.is_file():
                raise FileNotFoundError(f"{option}: {str(file)!r} is no file; check the path.")
            if out.exists() and out.samefile(file):
                raise ValueError(f"--out and {option} are the same file, {str(file)!r}.")
        if not out.parent.is_dir():
            raise FileNotFoundError(f"--out: the folder {str(out.parent)!r} does not exist.")
        self._out = out
        self._about = out.with_name(f"{out.name}{ENDING}")
        histories_sha256, self.n_histories = digest_and_lines(histories)
        self._run = {
            "recbole_llamarec": __version__,
            "checkpoint_sha256": sha256_of(checkpoint),
            "histories_sha256": histories_sha256,
            "k": k,
        }
        self.n_done, self._size = 0, 0
        self._is_there = os.path.lexists(out)  # also as a link that leads nowhere
        if os.path.lexists(self._about):
            self._check_run()
            if self._is_there:
                self._measure(k, batch)
        elif self._is_there:
            raise self._refusal(f"{str(self._about)!r}, which would say what it holds, is missing")

    def add(self, results: Iterable[Sequence[Recommendation]]) -> None:
        """Write the results of the next histories behind the last whole batch.

        Raises:
            ValueError: another program has made a file of this name meanwhile.
            OSError: it cannot be written.
        """
        if not os.path.lexists(self._about):
            with written_whole(self._about, "--out") as part:
                part.write_text(json.dumps(self._run, indent=1) + "\n", encoding="utf-8")
        lines = [line_of(result) for result in results]
        if not self._is_there and os.path.lexists(self._out):
            raise self._refusal("it was not there a moment ago")
        with naming(self._out, "--out"):
            with self._out.open("r+b" if self._is_there else "xb") as file:
                self._is_there = True
                file.truncate(self._size)
                file.seek(self._size)
                file.writelines(lines)
            flush(self._out)
        self._size += sum(map(len, lines))

    def _check_run(self) -> None:
        try:
            run = json.loads(self._about.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise self._refusal(f"{str(self._about)!r} cannot be read: {error}") from error
        if not isinstance(run, dict) or set(run) != set(self._run):
            raise self._refusal(f"{str(self._about)!r} does not say of what it is")
        if other := [name for name, value in self._run.items() if run[name] != value]:
            differing = ", ".join(f"{n} {run[n]!r} there, {self._run[n]!r} here" for n in other)
            raise self._refusal(f"it holds another run ({differing})")

    def _measure(self, k: int, batch: int) -> None:
        """Count the results that stay, and their bytes."""
        if not self._out.is_file():
            raise self._refusal("it is no file")
        count, end = 0, 0
        with self._out.open("rb") as lines:
            for line in lines:
                is_whole = line.endswith(b"\n")
                if not (_is_result(line, k) if is_whole else _begins_result(line)):
                    raise self._refusal(f"line {count + 1} is no result of {k} items")
                if not is_whole:
                    break
                count, end = count + 1, end + len(line)
                if count % batch == 0 or count == self.n_histories:
                    self.n_done, self._size = count, end
        if count > self.n_histories:
            raise self._refusal(f"it has more lines than the {self.n_histories} histories")

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"--out: {str(self._out)!r} is not touched: {reason}. Give another name, or remove "
            f"it and {self._about.name!r}."
        )


def line_of(result: Sequence[Recommendation]) -> bytes:
    """A result as its line, with the line's end."""
    return json.dumps([asdict(item) for item in result], allow_nan=False).encode() + b"\n"


def digest_and_lines(file: Path) -> tuple[str, int]:
    """SHA-256 of a file in hexadecimal, and the number of its lines."""
    digest, n_lines = hashlib.sha256(), 0
    with file.open("rb") as lines:
        for line in lines:
            digest.update(line)
            n_lines += 1
    return digest.hexdigest(), n_lines


def _is_result(line: bytes, k: int) -> bool:
    try:
        items = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return line.startswith(BEGINNING) and len(items) == k


def _begins_result(line: bytes) -> bool:
    """Whether a line without an end may be the beginning of a result."""
    return line.startswith(BEGINNING) or BEGINNING.startswith(line)
