"""Search for items by their titles."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


class TitleSearch:
    """Finds items by parts of their titles; case, accents and repeated spaces do not count.

    All titles stand in one string, the most frequent items first, so that a million of them are
    searched by a few calls of ``str.find``.

    Args:
        titles: of each item id; that of id 0, the padding item, is left out.
        counts: how frequent each item is.
    """

    def __init__(self, titles: Sequence[str], counts: Sequence[int] | np.ndarray) -> None:
        order = np.argsort(-np.asarray(counts)[1:], kind="stable") + 1
        self._items: list[int] = order.tolist()
        folded = ["\n" + fold(titles[item]) for item in self._items]
        self._text = "".join(folded)
        lengths = [len(title) for title in folded]
        self._starts: list[int] = np.cumsum([0, *lengths]).tolist()  # and where the last one ends

    def find(self, query: str, limit: int) -> list[int]:
        """Ids of matching items: titles that begin with the query, then those with a word that
        does, then those that hold it, then those that hold all its words.

        Args:
            query: part of a title; empty finds the most frequent items.
            limit: most items that are found.
        """
        wanted = fold(query)
        if not wanted:
            return self._items[:limit]
        words = wanted.split()
        found: dict[int, None] = {}  # a set that keeps the order
        for pattern in (f"\n{wanted}", f" {wanted}", wanted, max(words, key=len)):
            at = self._text.find(pattern)
            while at >= 0 and len(found) < limit:
                row = bisect_right(self._starts, at) - 1
                start, end = self._starts[row : row + 2]
                if all(self._text.find(word, start, end) >= 0 for word in words):
                    found[self._items[row]] = None
                at = self._text.find(pattern, end)
        return list(found)


def fold(text: str) -> str:
    """A text without what does not count in a search."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return " ".join(bare.casefold().split())
