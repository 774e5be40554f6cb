"""The language model as a scorer: it holds a ranker, which is loaded when it is first needed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llamarec.adapters.card import AdapterCard, read_card
from recbole_llamarec.adapters.find import AUTO, check_adapter, find_adapter
from recbole_llamarec.finite import RowError
from recbole_llamarec.ranking.model.adapter import (
    adapter_config,
    adapter_state,
    add_adapter,
    load_adapter,
    load_adapter_state,
    restore_adapter,
)
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.forward import forward_for
from recbole_llamarec.ranking.model.loading import load_language_model
from recbole_llamarec.ranking.protocol import Ranker, RankerParts, ranker_class_of
from recbole_llamarec.ranking.rank import BatchLog, rank_all
from recbole_llamarec.scoring.scorer import Rows, Scorer, ScorerParts

MOST_TOKENISED = 1000  # of the titles with most characters, to find those with most tokens
logger = logging.getLogger(__name__)


class LanguageModel:
    """A language model's opinion on candidates, read as ``ranking_method`` says.

    The model is no part of RecBole's ``state_dict``; checkpoints hold its adapter.

    Args:
        parts: of the run.

    Attributes:
        name: the ranker's, as in ``ranking_method``.
        parts: of the run.
        log: where the scored batches of a pass go, and come from where a pass goes on.
        show_progress: show a progress bar over users.
        card: of the adapter that ``lora_adapter: auto`` found, which is not tuned again; or None.
        has_adapter: whether there are weights here to tune and to save.
    """

    has_adapter = True

    def __init__(self, parts: ScorerParts) -> None:
        self.name = parts.settings.ranking_method
        self.log: BatchLog | None = None
        self.show_progress = False
        self.card: AdapterCard | None = None
        self.parts = parts
        self._budget = TokenBudget(parts.settings.llm_batch_tokens, "llm_batch_tokens")
        self._ranker: Ranker | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether there is an adapter that the run tunes."""
        return self.has_adapter and self.card is None

    @property
    def ranker(self) -> Ranker:
        """The ranker; loads the language model on first use."""
        if self._ranker is None:
            ranker, tokenizer = self._loaded()
            self._check_longest_prompt(ranker, tokenizer)
            self._ranker = ranker
        return self._ranker

    def _loaded(self) -> tuple[Ranker, Any]:
        """The ranker and its tokenizer, with the language model loaded."""
        settings, device = self.parts.settings, self.parts.device
        base, tokenizer = load_language_model(settings.llm, device)
        forward = forward_for(base, settings.llm.attention, device)
        parts = RankerParts(
            model=self._adapted(base),
            tokenizer=tokenizer,
            forward=forward,
            texts=self.parts.item_texts,
            settings=settings,
        )
        return ranker_class_of(self.name).build(parts), tokenizer

    def _check_longest_prompt(self, ranker: Ranker, tokenizer: Any) -> None:
        """Find out now, before any training, whether every prompt fits the model.

        Raises:
            ValueError: the longest titles do not fit as candidates; names the keys.
        """
        if ranker.prompts is None:
            return
        n_shown, titles = self.parts.settings.rerank_candidates, ranker.prompts.titles
        longest = sorted(range(1, len(titles)), key=lambda i: len(titles[i]), reverse=True)
        longest = longest[: MOST_TOKENISED + n_shown]
        n_tokens = dict(
            zip(longest, map(len, tokenizer([titles[i] for i in longest]).input_ids), strict=True)
        )
        ranker.encode([], sorted(longest, key=n_tokens.__getitem__, reverse=True)[:n_shown])

    def _adapted(self, base: Any) -> nn.Module:
        """The language model with its adapter: a checkpoint's, a directory's, or a fresh one."""
        settings, dataset = self.parts.settings, self.parts.dataset
        if self._saved is not None:
            config, weights = self._saved["lora"], self._saved["adapter"]
            return restore_adapter(base, config, weights, trainable=True)
        directory = None if settings.lora_adapter is None else Path(settings.lora_adapter)
        if settings.lora_adapter == AUTO:
            directory = find_adapter(settings, dataset, base.name_or_path)
            self.card = None if directory is None else read_card(directory)
            logger.info(
                "lora_adapter: auto: %s",
                f"{directory}, which is not tuned again; ~ tunes a new one"
                if directory
                else "none fits this training part, model and prompt; a new one",
            )
        if directory is None:
            return add_adapter(base, settings.lora, self.parts.seed)
        try:
            check_adapter(directory, dataset)
            return load_adapter(base, directory, trainable=True)
        except (FileNotFoundError, ValueError) as error:
            named = str(error).startswith("lora_adapter")
            raise type(error)(f"{'' if named else 'lora_adapter: '}{error}") from error

    def scores(self, rows: Rows, items: Tensor) -> Tensor:
        """The ranker's log-probabilities of candidates, shown in the order of ``items``.

        Args:
            rows: histories, R of them.
            items: candidates, int64 ``[R, K]`` on the CPU.

        Returns:
            float32 ``[R, K]`` on the CPU.

        Raises:
            RowError: a score is not finite, or cannot be had.
        """
        histories, pools = rows.histories, items.tolist()
        try:
            return rank_all(
                self.ranker, histories, pools, self._budget, self.show_progress, log=self.log
            )
        except RowError as error:
            dataset = self.parts.dataset
            user = 0 if error.row is None else int(rows.users[error.row])
            who = f" (user {str(dataset.id2token(dataset.uid_field, user))!r})" if user else ""
            raise type(error)(f"{self.name}{who}: {error}", error.row) from error

    @contextmanager
    def logging_batches(self, log: BatchLog | None, show_progress: bool) -> Iterator[None]:
        """Within, scored batches go into ``log``, and those that it has are not computed again."""
        previous = self.log, self.show_progress
        self.log, self.show_progress = log, show_progress
        try:
            yield
        finally:
            self.log, self.show_progress = previous

    def state(self) -> dict[str, Any]:
        """The adapter: PEFT's configuration as plain values, weights by PEFT's names."""
        if self._ranker is None:
            return self._saved or {}
        model: Any = self._ranker.model
        return {"lora": adapter_config(model), "adapter": adapter_state(model)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the adapter that :meth:`state` gave."""
        if not state:
            return
        self._saved = dict(state)
        if self._ranker is not None:
            load_adapter_state(self._ranker.model, self._saved["adapter"])  # type: ignore[arg-type]

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's weights, to be tuned."""
        return [own for own in self.ranker.model.parameters() if own.requires_grad]

    def adapter_weights(self) -> dict[str, torch.Tensor]:
        """Copies of the adapter's weights on the CPU, by PEFT's names."""
        return adapter_state(self.ranker.model)  # type: ignore[arg-type]

    def load_adapter_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put weights into the adapter that :meth:`adapter_weights` has copied."""
        load_adapter_state(self.ranker.model, dict(weights))  # type: ignore[arg-type]


def language_model_of(scorers: Iterable[Scorer]) -> LanguageModel | None:
    """The language model among some scorers, if there is one."""
    return next((scorer for scorer in scorers if isinstance(scorer, LanguageModel)), None)
