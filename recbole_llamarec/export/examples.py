"""A few prompts with this process's scores, by which ``rank.py --check`` tests a folder."""

from __future__ import annotations

from typing import Any

from recbole_llamarec.export.load import Export
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.rank import rank_all

N_EXAMPLES = 3


def examples(export: Export) -> list[dict[str, Any]]:
    """Score made-up histories, of no user: runs of the catalogue's items, without history first.

    Args:
        export: what is exported; its model has the adapter beside its weights.

    Returns:
        Of each example, ``history`` and ``candidates`` as tokens, and the candidates'
        ``log_probabilities``; the longest history and all labels are used.
    """
    ranker, settings, tokens = export.ranker, export.settings, export.tokens
    n_items = len(tokens) - 1
    n_candidates = min(len(ranker.verbalizer.labels), n_items)
    longest = min(ranker.prompts.max_history, n_items)
    histories, candidates = [], []
    for number in range(N_EXAMPLES):
        length = longest * number // (N_EXAMPLES - 1)
        first = n_items * number // N_EXAMPLES
        items = [1 + (first + place) % n_items for place in range(length + n_candidates)]
        histories.append(items[:length])
        candidates.append(items[length:])
    budget = TokenBudget(settings.llm_batch_tokens, "llm_batch_tokens")
    scores = rank_all(ranker, histories, candidates, budget).tolist()
    return [
        {
            "history": [tokens[item] for item in history],
            "candidates": [tokens[item] for item in pool],
            "log_probabilities": of_pool,
        }
        for history, pool, of_pool in zip(histories, candidates, scores, strict=True)
    ]
