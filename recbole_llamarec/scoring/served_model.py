"""The language model on a server as a scorer: nothing is loaded here but its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.forward import forward_for
from recbole_llamarec.ranking.model.loading import load_language_model, load_tokenizer
from recbole_llamarec.ranking.protocol import Ranker, RankerParts, ServedParts, ranker_class_of
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.ranking.served.parity import parity
from recbole_llamarec.scoring.language_model import LanguageModel
from recbole_llamarec.scoring.scorer import ScorerParts

ROUNDS = 4  # prompts of one batch for each that is asked at a time, so that few wait for the last
MOST_DIFFERENCE = 0.1  # nats between server and local model on average, see docs/engines.md
logger = logging.getLogger(__name__)


class ServedModel(LanguageModel):
    """A language model on an OpenAI-compatible server: ``llm_backend: http``.

    Args:
        parts: of the run.
    """

    has_adapter = False

    def __init__(self, parts: ScorerParts) -> None:
        super().__init__(parts)
        requests = ROUNDS * parts.settings.llm_http.concurrency
        self._budget = TokenBudget(requests, "llm_http_concurrency")  # a prompt costs one request

    def _loaded(self) -> tuple[Ranker, Any]:
        """The ranker that asks the server, compared with the local model where that is wanted."""
        settings, texts = self.parts.settings, self.parts.item_texts
        tokenizer = load_tokenizer(settings.llm)
        served: Any = ranker_class_of(self.name)  # a check of the settings has seen that it has it
        ranker = served.served(ServedParts(tokenizer, texts, settings))
        if settings.llm_http.parity:
            self._compare(ranker)
        return ranker, tokenizer

    def _compare(self, ranker: Ranker) -> None:
        """Compare the server's scores with the local model's on prompts of random items.

        Raises:
            ValueError: they differ by more than numbers of other precision do.
        """
        settings, generator = self.parts.settings, np.random.default_rng(self.parts.seed)
        n_items, n_shown = self.parts.n_items, settings.rerank_candidates
        histories, pools = [], []
        for _ in range(settings.llm_http.parity):
            items = (1 + generator.permutation(n_items - 1)).tolist()
            pools.append(items[:n_shown])
            histories.append(items[n_shown:][: settings.prompt_max_history])
        served = rank_all(ranker, histories, pools, self._budget)  # [parity, K]
        found = parity(served, self._local_scores(histories, pools))
        logger.info("llm_http_parity: %s", found)
        if found.mean > MOST_DIFFERENCE:
            raise ValueError(
                f"llm_http_parity: the server's scores are not those of llm_name_or_path: {found}. "
                "Serve the same model with the same tokenizer, let the server add no tokens to "
                "prompts, or set llm_http_parity to 0 where they are to differ."
            )

    def _local_scores(self, histories: Sequence[list[int]], pools: Sequence[list[int]]) -> Tensor:
        """The local model's log-probabilities without an adapter, ``[parity, K]``."""
        settings, device = self.parts.settings, self.parts.device
        model, tokenizer = load_language_model(settings.llm, device)
        forward = forward_for(model, settings.llm.attention, device)
        parts = RankerParts(model, tokenizer, forward, self.parts.item_texts, settings)
        local = ranker_class_of(self.name).build(parts)
        budget = TokenBudget(settings.llm_batch_tokens, "llm_batch_tokens")
        return rank_all(local, histories, pools, budget)

    def state(self) -> dict[str, Any]:
        """Nothing: the server has the weights."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing is taken, see :meth:`state`."""

    def parameters(self) -> list[nn.Parameter]:
        """One without a value: nothing is tuned, but an optimizer has to have one."""
        return [nn.Parameter(torch.empty(0))]

    def adapter_weights(self) -> dict[str, Tensor]:
        """None: a served model is not tuned here."""
        return {}

    def load_adapter_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Nothing is taken, see :meth:`adapter_weights`."""
