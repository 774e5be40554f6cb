"""A history as a list of titles, of which a candidate is the next: what likelihood is read from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from recbole_llamarec.ranking.prompt.pieces import encode_pieces, encode_start
from recbole_llamarec.ranking.prompt.title import TitleRules, prepare_titles, special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = ";"  # of a title; it stands after each, so that "Alien" is not a beginning of "Aliens"

logger = logging.getLogger(__name__)


class TitleList:
    """Builds token ids of histories and of what follows them; titles are tokenised once.

    The text is ``"User history: Toy Story; Heat; Alien;"``: each title begins with a space behind
    a semicolon, where no tokenizer merges, so that pieces put together are the whole text's ids.
    A semicolon within a title is shown as a comma, lest it end the title.

    Args:
        tokenizer: any tokenizer of transformers.
        titles: text of each item id; the one of id 0, RecBole's padding item, is never shown.
        heading: what stands before the first title.
        max_title_tokens: most tokens of a title; a longer one is cut, everywhere alike.
        max_tokens: most tokens of a text; the first titles go first; ``None`` is no limit.
        max_history: most titles of a history that are shown, the most recent ones; ``None`` is no
            limit.

    Attributes:
        start: token ids of the heading, which every text begins with.
        titles: the titles as they are shown: cleaned, cut, ``"unknown item"`` where empty.
        token_ids: every token that a title has, each once, in rising order.
        n_shortened: histories encoded so far that were cut to fit ``max_tokens``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        titles: Sequence[str],
        heading: str,
        max_title_tokens: int,
        max_tokens: int | None = None,
        max_history: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.heading = heading
        self.max_tokens = max_tokens
        self.max_history = max_history
        self.n_shortened = 0
        self._max_title_tokens = max_title_tokens
        self._rules = TitleRules.build(
            heading, "", "", (), 0, special_texts(tokenizer), separator=END
        )
        self.start = encode_start(tokenizer, heading)
        self.titles: list[str] = []
        self._pieces: list[list[int]] = []
        self.token_ids: list[int] = []
        self._add(titles)

    def _add(self, titles: Sequence[str]) -> None:
        shown, _ = prepare_titles(titles, self._rules, self._max_title_tokens, self._encode)
        self.titles += shown
        pieces = self._encode([f" {title}{END}" for title in shown])
        self._pieces += pieces
        self.token_ids = sorted({*self.token_ids, *(token for piece in pieces for token in piece)})

    def _encode(self, pieces: list[str]) -> list[list[int]]:
        return encode_pieces(self.tokenizer, pieces)

    @contextmanager
    def with_titles(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Items that the catalogue does not have, as ``PromptBuilder.with_titles`` has them."""
        n_items, token_ids = len(self.titles), self.token_ids
        distinct = list(dict.fromkeys(texts))
        numbers = dict(zip(distinct, range(n_items, n_items + len(distinct)), strict=True))
        self._add(distinct)
        try:
            yield [numbers[text] for text in texts]
        finally:
            del self.titles[n_items:], self._pieces[n_items:]
            self.token_ids = token_ids

    def encode(
        self, history: Sequence[int], items: Sequence[int]
    ) -> tuple[list[int], list[list[int]], int]:
        """Token ids of a history, and of each title that may follow it.

        Args:
            history: item ids in chronological order; the last ``max_history`` are shown.
            items: item ids of the titles that may follow.

        Returns:
            The history's token ids, those of each item's title, and how many titles of the history
            are shown.

        Raises:
            ValueError: an id is not an item's, or a title does not fit ``max_tokens``.
        """
        recent = self._recent(history)
        kept = self._fitting(recent, items)
        self.n_shortened += len(kept) < len(recent)
        context = self.start + [token for item in kept for token in self._pieces[item]]
        return context, [self._pieces[int(item)] for item in items], len(kept)

    def text(self, history: Sequence[int], items: Sequence[int]) -> str:
        """The text of a history, and behind it, one a line, what each item adds.

        Args:
            history, items: as :meth:`encode` takes them.
        """
        kept = self._fitting(self._recent(history), items)
        shown = "".join(f" {self.titles[item]}{END}" for item in kept)
        return "\n".join([self.heading + shown, *(f" {self.titles[i]}{END}" for i in items)])

    def _recent(self, history: Sequence[int]) -> list[int]:
        first = 0 if self.max_history is None else max(0, len(history) - self.max_history)
        return [int(item) for item in history[first:]]

    def _fitting(self, history: list[int], items: Sequence[int]) -> list[int]:
        """The most recent items of a history that fit ``max_tokens`` with each title behind."""
        n_items = len(self.titles)
        if wrong := [int(item) for item in (*history, *items) if not 0 < item < n_items]:
            raise ValueError(
                f"Item id {wrong[0]} has no title: ids go from 1 to {n_items - 1} (0 is padding)."
            )
        if self.max_tokens is None:
            return history
        longest = max((len(self._pieces[int(item)]) for item in items), default=0)
        n_tokens = len(self.start) + longest
        if n_tokens > self.max_tokens:
            raise ValueError(
                f"prompt_max_tokens is {self.max_tokens}, but {n_tokens} tokens are needed "
                "without any history; raise it, lower prompt_max_title_tokens, or shorten "
                "likelihood_heading."
            )
        first = len(history)
        while first and n_tokens + len(self._pieces[history[first - 1]]) <= self.max_tokens:
            first -= 1
            n_tokens += len(self._pieces[history[first]])
        return history[first:]

    def report_shortened(self, since: int) -> None:
        """Warn of the histories that were shortened since :attr:`n_shortened` was ``since``."""
        if shortened := self.n_shortened - since:
            logger.warning(
                "%d histories lost their oldest titles to fit prompt_max_tokens: %d",
                *(shortened, self.max_tokens),
            )
