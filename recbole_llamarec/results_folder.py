"""The folder of ``recommend --engine ray --out``: results in shards, each whole or absent."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from recbole_llamarec.checksums import sha256_of
from recbole_llamarec.files import PART, naming, written_whole
from recbole_llamarec.histories import BATCH, KnowsItems, batched, histories_of
from recbole_llamarec.shards import rows_in, shards_of, write_results
from recbole_llamarec.version import __version__

if TYPE_CHECKING:
    from recbole_llamarec.recommender import Recommendation

ABOUT = "run.json"  # the file in the folder that says what it holds


class Recommends(KnowsItems, Protocol):
    """What ranks a shard: a ``Recommender``."""

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10
    ) -> list[list[Recommendation]]: ...


class ResultsFolder:
    """A folder with a file of results for each shard of histories, of the same name and form.

    ``run.json`` in it names the checkpoint, the shards and ``k`` by digest or value: nothing is
    written where it names others. A file of results takes its name when it is complete, so that a
    shard whose results are there is finished. Objects can be sent to other processes.

    Args:
        out: the folder; it is made by :meth:`begin`.
        checkpoint: file of the model.
        histories: a shard, or a folder of them: ``.jsonl`` with one JSON list of item tokens a
            line, or ``.parquet`` with such lists in the column ``history``. Files whose names begin
            with a full stop or an underscore are no shards.
        k: items of each result.

    Attributes:
        checkpoint: its absolute path.
        k: as given.
        shards: by name, all of them, in the order of their names.

    Raises:
        FileNotFoundError: a file that is read, or the folder above ``out``, does not exist.
        ValueError: there is no shard, a file is none, or ``out`` is of another run.
        ImportError: a shard is Parquet, which cannot be read.
    """

    def __init__(self, out: Path, checkpoint: Path, histories: Path, k: int) -> None:
        if not checkpoint.is_file():
            raise FileNotFoundError(f"--checkpoint: {str(checkpoint)!r} is no file.")
        self._out, self.checkpoint, self.k = out.absolute(), checkpoint.absolute(), k
        if not self._out.parent.is_dir():
            raise FileNotFoundError(
                f"--out: the folder {str(self._out.parent)!r} does not exist; make it."
            )
        self.shards = shards_of(histories.absolute())
        of_histories = next(iter(self.shards.values())).file.parent
        if self._out.exists() and self._out.samefile(of_histories):
            raise ValueError(
                f"--out: {str(out)!r} is the folder of the histories, whose names results would "
                "take; give another folder."
            )
        self._run = {
            "recbole_llamarec": __version__,
            "checkpoint_sha256": sha256_of(checkpoint),
            "k": k,
            "shards_sha256": {name: shard.sha256 for name, shard in self.shards.items()},
        }
        if os.path.lexists(self._out):
            self._require_own()

    def results(self, name: str) -> Path:
        """The file of a shard's results."""
        return self._out / name

    @property
    def pending(self) -> list[str]:
        """Names of the shards that have no results yet."""
        return [name for name in self.shards if not self.results(name).exists()]

    def begin(self) -> None:
        """Make the folder with its ``run.json``; remove what killed workers left.

        Raises:
            OSError: it cannot be written to.
        """
        with naming(self._out, "--out"):
            self._out.mkdir(exist_ok=True)
        for name in (*self.shards, ABOUT):
            for part in self._out.glob(f"{glob.escape(name)}.*{PART}"):
                part.unlink(missing_ok=True)
        if not self._about.exists():
            with written_whole(self._about, "--out", _part_of(self._about)) as part:
                part.write_text(json.dumps(self._run, indent=1) + "\n", encoding="utf-8")

    def require_here(self) -> None:
        """Check that this machine sees the same files under the same paths.

        Raises:
            ValueError, OSError: ``run.json`` or the checkpoint is another one, or absent.
        """
        if json.loads(self._about.read_bytes()) != self._run:
            raise ValueError(f"--out: {str(self._about)!r} is of another run here.")
        if __version__ != self._run["recbole_llamarec"]:
            raise ValueError(f"recbole_llamarec is {__version__} here; install the same version.")
        if sha256_of(self.checkpoint) != self._run["checkpoint_sha256"]:
            raise ValueError(f"--checkpoint: {str(self.checkpoint)!r} is another file here.")

    def check(self, recommender: Recommends) -> None:
        """Read all that is pending, so that a bad line is not found after hours.

        Raises:
            ValueError: a line or row is no list of known items, which is named; or k is too large.
        """
        recommender.recommend([], self.k)
        for name in self.pending:
            for _ in histories_of(self.shards[name].file, recommender):
                pass

    def rank(self, name: str, recommender: Recommends) -> None:
        """Write the results of a shard, which is ranked in batches as a file alone would be.

        Raises:
            ValueError: a line or row is no list of known items.
            OSError: a file cannot be read or written.
        """
        batches = batched(histories_of(self.shards[name].file, recommender), BATCH)
        results = (
            result for histories in batches for result in recommender.recommend(histories, self.k)
        )
        file = self.results(name)
        with written_whole(file, "--out", _part_of(file)) as part:
            write_results(part, file.suffix, results)

    @property
    def _about(self) -> Path:
        return self._out / ABOUT

    def _require_own(self) -> None:
        """Check that what is there is of this run."""
        if not self._out.is_dir():
            raise self._refusal("it is no folder")
        if not self._about.exists():
            if others := sorted(n for n in os.listdir(self._out) if not n.endswith(PART)):
                raise self._refusal(f"it holds {others[0]!r} and no {ABOUT}")
            return
        try:
            run = json.loads(self._about.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise self._refusal(f"{ABOUT} cannot be read: {error}") from error
        if not isinstance(run, dict) or set(run) != set(self._run):
            raise self._refusal(f"{ABOUT} does not say of what it is")
        if other := [name for name, value in self._run.items() if run[name] != value]:
            raise self._refusal(f"it holds another run ({', '.join(other)} differ)")
        for name, shard in self.shards.items():
            if self.results(name).exists() and rows_in(self.results(name)) != shard.rows:
                raise self._refusal(f"{name!r} in it has not {shard.rows} results, as its shard")

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"--out: {str(self._out)!r} is not touched: {reason}. Give another folder, or remove "
            "this one."
        )


def _part_of(file: Path) -> Path:
    """A name for the unfinished file that no other worker takes, where two are given one shard."""
    return file.with_name(f"{file.name}.{uuid4().hex}{PART}")
