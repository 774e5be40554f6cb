"""A history as a list of titles, of which a candidate is the next: what likelihood is read from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from recbole_llamarec.ranking.pieces import encode_pieces, encode_start
from recbole_llamarec.ranking.title import TitleRules, prepare_titles, special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = ";"  # of a title; it stands after each, so that "Alien" is not a beginning of "Aliens"

_logger = logging.getLogger(__name__)


class TitleList:
    """Builds token ids of histories and of what follows them; titles are tokenised once.

    The text is ``"User history: Toy Story; Heat; Alien;"``: each title begins with a space behind
    a semicolon, where no tokenizer merges, so that pieces put together are the whole text's ids.

    Args:
        tokenizer: any tokenizer of transformers.
        titles: text of each item id; the one of id 0, RecBole's padding item, is never shown.
        heading: what stands before the first title.
        max_title_tokens: most tokens of a title; a longer one is cut, everywhere alike.
        max_tokens: most tokens of a text; the first titles go first; ``None`` is no limit.

    Attributes:
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
    ) -> None:
        self.tokenizer = tokenizer
        self.heading = heading
        self.max_tokens = max_tokens
        self.n_shortened = 0
        self._max_title_tokens = max_title_tokens
        self._rules = TitleRules.build(heading, "", "", (), 0, special_texts(tokenizer))
        self._start = encode_start(tokenizer, heading)
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
        self._add(distinct)
        try:
            yield [n_items + distinct.index(text) for text in texts]
        finally:
            del self.titles[n_items:], self._pieces[n_items:]
            self.token_ids = token_ids

    def encode(
        self, history: Sequence[int], nexts: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[list[int]]]:
        """Token ids of a history, and of each of several lists of titles that may follow it.

        Args:
            history: item ids in the order in which they are shown, any evidence in front.
            nexts: item ids of each continuation.

        Raises:
            ValueError: an id is not an item's, or a continuation does not fit ``max_tokens``.
        """
        recent = [int(item) for item in history]
        n_items = len(self.titles)
        if wrong := [item for item in chain(recent, *nexts) if not 0 < item < n_items]:
            raise ValueError(
                f"Item id {wrong[0]} has no title: ids go from 1 to {n_items - 1} (0 is padding)."
            )
        continuations = [[token for item in row for token in self._pieces[item]] for row in nexts]
        longest = len(self._start) + max(map(len, continuations), default=0)
        lengths = [len(self._pieces[item]) for item in recent]
        kept = recent
        if self.max_tokens is not None:
            if longest > self.max_tokens:
                raise ValueError(
                    f"prompt_max_tokens is {self.max_tokens}, but {longest} tokens are needed "
                    "without any history; raise it, or lower prompt_max_title_tokens."
                )
            while longest + sum(lengths) > self.max_tokens:
                kept, lengths = kept[1:], lengths[1:]
            self.n_shortened += len(kept) < len(recent)
        return self._start + [token for item in kept for token in self._pieces[item]], continuations

    def text(self, history: Sequence[int], candidates: Sequence[int]) -> str:
        """The history's text, and behind it, one a line, what each candidate adds."""
        shown = "".join(f" {self.titles[item]}{END}" for item in history)
        return "\n".join([self.heading + shown, *(f" {self.titles[i]}{END}" for i in candidates)])

    def report_shortened(self, since: int) -> None:
        """Warn of the histories that were shortened since :attr:`n_shortened` was ``since``."""
        if shortened := self.n_shortened - since:
            _logger.warning(
                "%d histories lost their oldest titles to fit prompt_max_tokens: %d",
                *(shortened, self.max_tokens),
            )
