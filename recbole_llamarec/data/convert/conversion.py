"""Raw downloads to atomic files: which files and parsers a source has, and the conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from recbole_llamarec.data.convert import amazon, movielens
from recbole_llamarec.data.convert.raw_files import (
    INTER_HEAD,
    AtomicFiles,
    ConversionError,
    Damage,
    FileReport,
    Row,
    one_file,
    parsed_rows,
    raw_lines,
)

LINKS = {
    "ml-latest": "https://grouplens.org/datasets/movielens/latest/",
    "ml-1m": "https://grouplens.org/datasets/movielens/1m/",
    "amazon-2014": "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
    "amazon-2018": "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
    "amazon-2023": "https://amazon-reviews-2023.github.io/",
}


@dataclass(frozen=True)
class RawFiles:
    """The two raw files of a source and how their lines are read.

    Attributes:
        inter, item: the files.
        parse_inter: one line to a row of the ``.inter`` file.
        parse_item: one line to a row of the ``.item`` file, given the file's report.
        item_head: head of the ``.item`` file.
        check_inter, check_item: of the first line, where the file has a head.
        encoding: of both files.
    """

    inter: Path
    item: Path
    parse_inter: Callable[[str], Row]
    parse_item: Callable[[FileReport], Callable[[str], Row]]
    item_head: Row
    check_inter: Callable[[str], None] | None = None
    check_item: Callable[[str], None] | None = None
    encoding: str = "utf-8"


def raw_files(source: str, raw: Path) -> RawFiles:
    """Find a source's files in its folder.

    Raises:
        ConversionError: a file is missing, or several could be meant.
    """
    if source == "ml-latest":
        return RawFiles(
            one_file(raw, ["ratings.csv"]),
            one_file(raw, ["movies.csv"]),
            movielens.csv_rating,
            lambda _: movielens.csv_film,
            movielens.ITEM_HEAD,
            movielens.header_check(movielens.RATING_COLUMNS),
            movielens.header_check(movielens.MOVIE_COLUMNS),
        )
    if source == "ml-1m":
        return RawFiles(
            one_file(raw, ["ratings.dat"]),
            one_file(raw, ["movies.dat"]),
            movielens.colon_rating,
            lambda _: movielens.colon_film,
            movielens.ITEM_HEAD,
            encoding="latin-1",
        )
    year = int(source.removeprefix("amazon-"))
    patterns = {2014: ["ratings_*.csv"], 2018: ["*.json", "*.csv"], 2023: ["*.jsonl"]}[year]
    # ratings_ and reviews_ are the names of 2014, whose columns stand in another order
    others = ("meta_",) if year == 2014 else ("meta_", "ratings_", "reviews_")
    inter = one_file(raw, patterns, exclude=others)
    is_csv = inter.name.removesuffix(".gz").endswith(".csv")
    parse = {
        2014: amazon.rating_2014,
        2018: amazon.rating_2018 if is_csv else amazon.review_2018,
        2023: amazon.review_2023,
    }[year]
    metadata = one_file(raw, ["meta_*.jsonl" if year == 2023 else "meta_*.json"])
    return RawFiles(
        inter, metadata, parse, lambda r: amazon.Metadata(year, r).item, amazon.ITEM_HEAD
    )


def convert(
    source: str, raw: Path, out: Path, overwrite: bool = False, show_progress: bool = False
) -> list[FileReport]:
    """Convert a raw download to the atomic files of one data set.

    Interactions keep the order of the raw file, which decides between equal timestamps.

    Args:
        source: a key of ``LINKS``.
        raw: folder of the raw files.
        out: the data set's folder; the atomic files are named after it.
        overwrite: replace atomic files that are there.
        show_progress: show a progress bar over bytes.

    Returns:
        a report for the interactions and one for the items.

    Raises:
        ConversionError: a file is missing or not of this source, or nothing in it could be read.
    """
    files = raw_files(source, raw)
    atomic = AtomicFiles(out, overwrite)
    reports = [FileReport(files.inter.name), FileReport(files.item.name)]
    total = files.inter.stat().st_size + files.item.stat().st_size
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=not show_progress) as progress,
        atomic.writing(),
    ):
        lines = after_head(files.inter, files.check_inter, files.encoding, progress)
        rows = parsed_rows(lines, files.parse_inter, reports[0], files.encoding)
        atomic.write("inter", INTER_HEAD, rows, reports[0])

        lines = after_head(files.item, files.check_item, files.encoding, progress)
        rows = parsed_rows(lines, files.parse_item(reports[1]), reports[1], files.encoding)
        items = atomic.first_of_each(rows, reports[1])
        atomic.write("item", files.item_head, counted_titles(items, reports[1]), reports[1])
        for report in reports:
            if not report.written:
                raise ConversionError(
                    f"Nothing in {report.file} could be read; is it of {source}?\n"
                    + "\n".join(report.lines())
                )
    return reports


def after_head(
    path: Path, check: Callable[[str], None] | None, encoding: str, progress: tqdm
) -> Iterator[tuple[int, bytes]]:
    """The lines of a file behind its head, which must be as expected.

    Raises:
        ConversionError: the head is another.
    """
    lines = raw_lines(path, progress)
    if check is not None:
        _, head = next(lines, (1, b""))
        try:
            check(head.decode(encoding, errors="replace"))
        except Damage as damage:
            raise ConversionError(f"{path}: {damage}; it is {head[:80]!r}.") from None
    yield from lines


def counted_titles(rows: Iterable[Row], report: FileReport) -> Iterator[Row]:
    """The rows as they are; those without a title are counted."""
    for row in rows:
        if not row[1]:
            report.note("items without a title")
        yield row
