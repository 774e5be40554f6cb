"""Shards: files of histories and files of results, as JSON lines or as Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recbole_llamarec.histories import BATCH, PARQUET, batched, open_parquet
from recbole_llamarec.results_file import digest_and_lines, line_of

if TYPE_CHECKING:
    from recbole_llamarec.recommender import Recommendation

Results = Iterable[Sequence["Recommendation"]]

LINES = ".jsonl"
LEFT_BY_OTHERS = (".", "_")  # with which names begin of what other programs leave in a folder
COLUMN = "recommendations"  # of a Parquet file of results
GROUP = 100 * BATCH  # results that are held until they are written to a Parquet file


class Shard(NamedTuple):
    """A file of histories.

    Attributes:
        file: its path.
        sha256: its digest in hexadecimal.
        rows: histories in it.
    """

    file: Path
    sha256: str
    rows: int


def shards_of(histories: Path) -> dict[str, Shard]:
    """The shards in a folder, or the one that is named, by name and in the order of names.

    Raises:
        FileNotFoundError: there is nothing of this name.
        ValueError: the folder is empty, or a file is no shard; names it.
        ImportError: a shard is Parquet, which cannot be read.
    """
    if not histories.exists():
        raise FileNotFoundError(f"--histories: {str(histories)!r} does not exist; check the path.")
    files = [histories]
    if histories.is_dir():
        files = [f for f in histories.iterdir() if not f.name.startswith(LEFT_BY_OTHERS)]
    if not files:
        raise ValueError(f"--histories: the folder {str(histories)!r} holds no shard.")
    for file in files:
        if file.suffix not in WRITERS or not file.is_file():
            raise ValueError(
                f"--histories: {str(file)!r} is no file that ends in {' or '.join(WRITERS)}. Name "
                "it so, or take it out of the folder."
            )
    return {file.name: _shard(file) for file in sorted(files)}


def rows_in(file: Path) -> int:
    """Histories or results in a shard.

    Raises:
        ValueError: it is no Parquet, as its name says.
        ImportError: it is Parquet, which cannot be read.
    """
    if file.suffix != PARQUET:
        return digest_and_lines(file)[1]
    with open_parquet(file) as parquet:
        return parquet.metadata.num_rows


def write_results(file: Path, form: str, results: Results) -> None:
    """Write results as they come.

    Args:
        file: where.
        form: ``.jsonl`` or ``.parquet``.
        results: of each history.
    """
    WRITERS[form](file, results)


def _shard(file: Path) -> Shard:
    sha256, n_lines = digest_and_lines(file)
    return Shard(file, sha256, rows_in(file) if file.suffix == PARQUET else n_lines)


def _write_lines(file: Path, results: Results) -> None:
    with file.open("wb") as lines:
        lines.writelines(line_of(result) for result in results)


def _write_parquet(file: Path, results: Results) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {
        "item": pa.string(),
        "text": pa.string(),
        "rank": pa.int64(),
        "score": pa.float64(),
        "probability": pa.float64(),
        "retriever_rank": pa.int64(),
    }
    schema = pa.schema({COLUMN: pa.list_(pa.struct(kinds))})
    with ParquetWriter(file, schema) as writer:
        for group in batched(results, GROUP):
            rows = [[asdict(item) for item in result] for result in group]
            writer.write_table(pa.table({COLUMN: rows}, schema=schema))


WRITERS: dict[str, Callable[[Path, Results], None]] = {LINES: _write_lines, PARQUET: _write_parquet}
