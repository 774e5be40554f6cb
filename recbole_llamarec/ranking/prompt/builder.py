"""The ranking prompt: history and candidates as titles, each candidate with an index letter.

The prompt follows LlamaRec (Yue et al. 2023, arXiv 2311.02089, section 3.3 and its prompt
template). Titles are tokenised once; a prompt is put together from lists of token ids, and these
are the ids that the tokenizer gives for the whole text. That holds because pieces are parted only
in front of a space that follows a non-space: no token crosses that point, neither with a
GPT-2-style pre-tokeniser nor with SentencePiece BPE. Text that touches a title is encoded with it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from recbole_llamarec.ranking.prompt.pieces import encode_pieces, encode_start
from recbole_llamarec.ranking.prompt.template import TITLE_MARK, PromptTemplate, cut_points
from recbole_llamarec.ranking.prompt.title import TitleRules, prepare_titles, special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class _Slot(NamedTuple):
    """One title's place in a prompt: the ids before it, and the text that is encoded with it."""

    ids_before: list[int]
    lead: str
    glue: str
    pieces: dict[int, list[int]]  # item id -> ids of lead + title + glue


class _Layout(NamedTuple):
    slots: list[_Slot]
    ids_after: list[int]


class PromptBuilder:
    """Builds prompts as token ids from titles that are tokenised once, at construction.

    Args:
        tokenizer: Any tokenizer of transformers. Where it is not piecewise, so that the ids differ
            from those of the whole text, one warning is logged; the ids spell the same text.
        titles: Text of each item id; the one of id 0, RecBole's padding item, is never shown.
        labels: Label of each candidate position.
        template: The wording.
        max_history: Most history entries shown, the most recent ones.
        max_title_tokens: Most tokens of a title; a longer one is cut, everywhere alike.
        max_prompt_tokens: Most tokens of a prompt; the oldest history entries go first.

    Attributes:
        titles: The titles as they are shown: cleaned, cut, ``"unknown item"`` where empty.
        n_shortened: Prompts encoded so far whose history was cut to fit ``max_prompt_tokens``.

    Raises:
        ValueError: A setting is out of its range, or the tokenizer appends a token to each text.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        titles: Sequence[str],
        labels: Sequence[str],
        template: PromptTemplate | None = None,
        max_history: int = 20,
        max_title_tokens: int = 32,
        max_prompt_tokens: int | None = None,
    ):
        for key, value, least in (
            ("prompt_max_history", max_history, 0),
            ("prompt_max_title_tokens", max_title_tokens, 1),
            ("prompt_max_tokens", max_prompt_tokens, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{key} is {value}: it must be at least {least}.")
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.template = template or PromptTemplate()
        self.max_history = max_history
        self.max_prompt_tokens = max_prompt_tokens
        self.n_shortened = 0
        special = special_texts(tokenizer)
        self._special = tuple(special)
        self._layouts: dict[tuple[int, int], _Layout] = {}
        self._static_ids: dict[tuple[str, bool], list[int]] = {}  # by text and start
        self._pieces: dict[tuple[str, str], dict[int, list[int]]] = {}  # by (lead, glue)
        self._rules = TitleRules.build(
            self.template.text,
            self.template.history_item,
            self.template.candidate_item,
            self.labels,
            max_history,
            special,
            separator=self.template.separator,
        )
        self._max_title_tokens = max_title_tokens
        self.titles, ids = self._prepared(titles)
        self._pieces[" ", ""] = dict(enumerate(ids))
        self._check_piecewise()

    @contextmanager
    def with_titles(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Items that the catalogue does not have, for as long as the context lasts.

        Args:
            texts: any texts; they are cleaned and cut as the catalogue's are. Equal ones are one
                item.

        Yields:
            The id of each text, behind those of the catalogue.
        """
        n_items = len(self.titles)
        distinct = list(dict.fromkeys(texts))
        numbers = dict(zip(distinct, range(n_items, n_items + len(distinct)), strict=True))
        titles, ids = self._prepared(distinct)
        self.titles += titles
        self._pieces[" ", ""].update(zip(numbers.values(), ids, strict=True))
        try:
            yield [numbers[text] for text in texts]
        finally:
            del self.titles[n_items:]
            for pieces in self._pieces.values():
                for number in numbers.values():
                    pieces.pop(number, None)

    def _prepared(self, titles: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        return prepare_titles(titles, self._rules, self._max_title_tokens, self._encode_pieces)

    def encode(self, history: Sequence[int], candidates: Sequence[int]) -> list[int]:
        """Return a prompt's token ids, as :meth:`encode_shown` does, which see."""
        return self.encode_shown(history, candidates)[0]

    def encode_shown(
        self, history: Sequence[int], candidates: Sequence[int]
    ) -> tuple[list[int], int]:
        """Return a prompt's token ids, with the tokenizer's own start token if it has one.

        Args:
            history: Item ids, the oldest first; the last ``max_history`` are shown.
            candidates: Two or more distinct item ids, in the order of the labels.

        Returns:
            The token ids, and how many titles of the history they show.

        Raises:
            ValueError: An id is not an item's, the candidates are fewer than two, repeated or more
                than the labels, or they do not fit ``max_prompt_tokens`` without any history.
        """
        recent, candidates = self._check(history, candidates)
        kept, ids = self._fit(recent, candidates)
        self.n_shortened += len(kept) < len(recent)
        return ids, len(kept)

    def places_behind(self, history: Sequence[int], candidates: Sequence[int]) -> tuple[int, ...]:
        """Where the text of each candidate ends, in a prompt that shows all of ``history``.

        It ends with what parts it from the next one; where labels stand before titles, with the
        title, as the next one's label comes together with what parts them.
        """
        slots, ids_after = self._layout(len(history), len(candidates))
        starts, ends, n_tokens = [], [], 0
        for item, slot in zip((*history, *candidates), slots, strict=True):
            starts.append(n_tokens + len(slot.ids_before))
            n_tokens = starts[-1] + len(slot.pieces[item])
            ends.append(n_tokens)
        is_label_first = "{label}" in self.template.candidate_item.partition("{title}")[0]
        behind = ends[len(history) : -1] if is_label_first else starts[len(history) + 1 :]
        return tuple(place - 1 for place in (*behind, n_tokens + len(ids_after)))

    def text(self, history: Sequence[int], candidates: Sequence[int]) -> str:
        """Return the text whose token ids :meth:`encode` returns, which see for the arguments."""
        recent, candidates = self._check(history, candidates)
        kept, _ = self._fit(recent, candidates)
        return self._render(kept, candidates)

    def report_shortened(self, since: int) -> None:
        """Warn of the prompts that were shortened since :attr:`n_shortened` was ``since``."""
        if shortened := self.n_shortened - since:
            logger.warning(
                "%d prompts lost their oldest history to fit prompt_max_tokens: %d",
                *(shortened, self.max_prompt_tokens),
            )

    def _check(
        self, history: Sequence[int], candidates: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        recent = [int(i) for i in history[max(0, len(history) - self.max_history) :]]
        shown = [int(i) for i in candidates]
        n_items = len(self.titles)
        if wrong := [i for i in recent + shown if not 0 < i < n_items]:
            raise ValueError(
                f"Item id {wrong[0]} has no title: ids go from 1 to {n_items - 1} (0 is padding)."
            )
        if not 2 <= len(shown) <= len(self.labels):
            raise ValueError(
                f"There are {len(shown)} candidates: there must be 2 to {len(self.labels)}, one "
                "for each of verbalizer_labels; rank fewer candidates or add labels."
            )
        if len(set(shown)) < len(shown):
            raise ValueError(f"The candidates {shown} hold an item twice; each may stand once.")
        return recent, shown

    def _fit(self, history: list[int], candidates: list[int]) -> tuple[list[int], list[int]]:
        """The most recent entries that fit ``max_prompt_tokens``, and the prompt's ids."""
        for first in range(len(history) + 1):
            ids = self._assemble(history[first:], candidates)
            if self.max_prompt_tokens is None or len(ids) <= self.max_prompt_tokens:
                return history[first:], ids
        raise ValueError(
            f"prompt_max_tokens is {self.max_prompt_tokens}, but the prompt of these "
            f"{len(candidates)} candidates needs {len(ids)} tokens without any history; raise it, "
            "lower prompt_max_title_tokens, shorten the wording (prompt_text, prompt_instruction, "
            "prompt_candidate_item, prompt_separator, prompt_empty_history) or rank fewer "
            "candidates."
        )

    def _assemble(self, history: list[int], candidates: list[int]) -> list[int]:
        slots, ids_after = self._layout(len(history), len(candidates))
        ids: list[int] = []
        for item, slot in zip(history + candidates, slots, strict=True):
            ids += slot.ids_before
            if item not in slot.pieces:
                piece = slot.lead + self.titles[item] + slot.glue
                slot.pieces[item] = self._encode_pieces([piece])[0]
            ids += slot.pieces[item]
        return ids + ids_after

    def _render(self, history: Sequence[int], candidates: Sequence[int]) -> str:
        return self.template.render(
            [self.titles[i] for i in history], [self.titles[i] for i in candidates], self.labels
        )

    def _layout(self, n_history: int, n_candidates: int) -> _Layout:
        """The prompt's parts around the titles for given numbers of them, made once.

        A static text ``glue body lead`` between two titles is cut at its first and its last cut
        point: the glue is encoded with the title before it, the lead with the one behind it.
        """
        if (n_history, n_candidates) in self._layouts:
            return self._layouts[n_history, n_candidates]
        titles = [TITLE_MARK] * n_history, [TITLE_MARK] * n_candidates
        statics = self.template.render(*titles, self.labels).split(TITLE_MARK)
        last = len(statics) - 1
        parts = []
        for i, static in enumerate(statics):
            cuts = cut_points(static, i > 0, self._special)
            if not cuts and i < last:
                raise ValueError(
                    f"prompt_text, prompt_separator and the item formats join two titles by "
                    f"{static!r}, which has no space behind ordinary text; add one."
                )
            begin = (cuts[0] if cuts else len(static)) if i else 0
            end = cuts[-1] if i < last else len(static)
            body = self._encode_static(static[begin:end], start=i == 0)
            parts.append((static[:begin], body, static[end:]))
        slots = [
            _Slot(body, lead, glue, self._pieces.setdefault((lead, glue), {}))
            for (_, body, lead), (glue, _, _) in pairwise(parts)
        ]
        self._layouts[n_history, n_candidates] = _Layout(slots, parts[-1][1])
        return self._layouts[n_history, n_candidates]

    def _encode_static(self, text: str, start: bool) -> list[int]:
        if (text, start) not in self._static_ids:
            ids = encode_start(self.tokenizer, text) if start else self._encode_pieces([text])[0]
            self._static_ids[text, start] = ids if text else []
        return self._static_ids[text, start]

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        return encode_pieces(self.tokenizer, pieces)

    def _check_piecewise(self, n_prompts: int = 8) -> None:
        """Warn where prompts over the catalogue differ from the tokenizer's own ids."""
        n_items = len(self.titles) - 1
        n_candidates = min(len(self.labels), n_items)
        if n_candidates < 2:
            return
        differing = 0
        for k in range(n_prompts):
            length = k * self.max_history // (n_prompts - 1)
            first = k * n_items // n_prompts
            items = [1 + (first + j) % n_items for j in range(length + n_candidates)]
            history, candidates = items[:length], items[length:]
            ids = self._assemble(history, candidates)
            full = self.tokenizer(self._render(history, candidates), verbose=False).input_ids
            differing += ids != full
        if differing:
            logger.warning(
                "%s is not piecewise: %d of %d prompts have other token ids than their whole text "
                "(which they still spell). Training and ranking use the same ids, so that only "
                "prompts tokenised elsewhere would differ.",
                type(self.tokenizer).__name__,
                differing,
                n_prompts,
            )
