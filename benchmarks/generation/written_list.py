"""Reads a list of titles that a language model wrote back into an order of the candidates."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

LIST_MARK = re.compile(r"(?:[-–—•·]+|[(\[](?:\d{1,3}|[a-z])[)\]]|(?:\d{1,3}|[a-z])[.):])\s*")
NUMBER = re.compile(r"\d+")
EDGES = " \"'“”‘’«»`*_.,;:!?"  # quotes, emphasis and punctuation around a title
CUTOFF = 0.9  # difflib's ratio; of a title of 20 characters, 3 may be cut off or 1 be exchanged


@dataclass(frozen=True)
class ParsedRanking:
    """What a written list says.

    Attributes:
        order: positions of candidates in the order written, each once.
        n_unmatched: lines that match no candidate.
        n_repeated: lines that name a candidate which an earlier line has named.
        n_omitted: candidates that no line names.
    """

    order: tuple[int, ...]
    n_unmatched: int
    n_repeated: int
    n_omitted: int

    def complete_order(self) -> list[int]:
        """All positions: those written, then those omitted in the order in which they were given.

        Returns:
            A permutation of the K positions.
        """
        written = set(self.order)
        n_candidates = len(self.order) + self.n_omitted
        return [*self.order, *(i for i in range(n_candidates) if i not in written)]


@dataclass
class GenerationCounts:
    """What has become of the lists so far.

    Attributes:
        lists: lists read.
        complete: lists that name every candidate.
        fallback: lists that name none, so that the candidates stay in the order given.
        matched: candidates named, over all lists.
        omitted: candidates not named.
        unmatched: lines that match no candidate.
        repeated: lines that name a candidate again.
    """

    lists: int = 0
    complete: int = 0
    fallback: int = 0
    matched: int = 0
    omitted: int = 0
    unmatched: int = 0
    repeated: int = 0

    def add(self, ranking: ParsedRanking) -> None:
        """Count one list."""
        self.lists += 1
        self.complete += not ranking.n_omitted
        self.fallback += not ranking.order
        self.matched += len(ranking.order)
        self.omitted += ranking.n_omitted
        self.unmatched += ranking.n_unmatched
        self.repeated += ranking.n_repeated

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.lists} lists generated: {self.complete} complete, {self.fallback} without any "
            f"candidate; {self.matched} of {self.matched + self.omitted} candidates written; "
            f"lines: {self.unmatched} match no candidate, {self.repeated} repeat one"
        )


def written_lines(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def parse_ranking(text: str, titles: Sequence[str]) -> ParsedRanking:
    """Read a list of titles, one a line, and match it with the candidates.

    A line matches a title that equals it but for case, white space, and quotes or punctuation at
    the ends; if none does, the same is tried without the line's list marks (``1.``, ``-``, ``(A)``,
    ``A)``), the outermost first. Failing these, the line matches the most similar title, where
    ``difflib`` rates them at 0.9 or more and both hold the same numbers: this finds titles that
    are slightly misspelt or cut off, and keeps ``Toy Story 3`` from passing for ``Toy Story 2``.
    Candidates of the same title are matched in the order given.

    Args:
        text: Any text.
        titles: Title of each candidate, K of them.

    Returns:
        The order written, and how many lines and candidates were left over.
    """
    waiting: dict[str, list[int]] = {}  # normalized title -> positions that no line has named
    for position, title in enumerate(titles):
        waiting.setdefault(_normalized(title), []).append(position)
    order: list[int] = []
    n_unmatched = n_repeated = 0
    for line in written_lines(text):
        title_named = _title_named(line, waiting.keys())
        if title_named is None:
            n_unmatched += 1
        elif waiting[title_named]:
            order.append(waiting[title_named].pop(0))
        else:
            n_repeated += 1
    return ParsedRanking(tuple(order), n_unmatched, n_repeated, len(titles) - len(order))


def _title_named(line: str, titles: Collection[str]) -> str | None:
    """The normalized title that a line names, if it names one."""
    readings = list(_readings(line))
    for reading in readings:
        if reading in titles:
            return reading
    for reading in readings:
        numbers = NUMBER.findall(reading)
        same_numbers = [title for title in titles if NUMBER.findall(title) == numbers]
        if close := difflib.get_close_matches(reading, same_numbers, n=1, cutoff=CUTOFF):
            return close[0]
    return None


def _readings(line: str) -> Iterator[str]:
    """The line normalized, then with one list mark after another taken off."""
    reading = _normalized(line)
    while reading:
        yield reading
        mark = LIST_MARK.match(reading)
        reading = reading[mark.end() :].strip(EDGES) if mark else ""


def _normalized(text: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.strip(EDGES) or plain
