"""Some users of the test in full: history, candidates, and what each stage made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from recbole.data.interaction import Interaction, cat_interactions
from scipy.special import softmax

from recbole_llamarec.evaluation.passes import PassRecords
from recbole_llamarec.llamarec import LlamaRec
from recbole_llamarec.report.record import SampledCandidate, SampledUser

N_USERS = 50
N_RETRIEVED = 40  # rows whose target is a candidate: in the others no scorer can do anything for it


def labels_of(model: LlamaRec) -> dict[str, list[str]]:
    """The labels of each place among the candidates, by the scorers whose prompts have labels."""
    labels = {}
    for name, scorer in model.scorers.items():
        prompts = getattr(getattr(scorer, "ranker", None), "prompts", None)
        if shown := getattr(prompts, "labels", None):
            labels[name] = list(shown[: model.settings.rerank_candidates])
    return labels


def sample_users(model: LlamaRec, loader, records: PassRecords) -> list[SampledUser]:
    """A random choice of rows, which depends on the seed and on what was retrieved alone.

    Args:
        model: as it was evaluated.
        loader: evaluation data of this process.
        records: of the pass of the final order, of this process.
    """
    retriever_ranks = records.rows["ranks"]
    final_ranks = records.ranks_by(model.fusion.final(model.settings.retriever))
    n_candidates = model.settings.rerank_candidates
    rows = chosen_rows(retriever_ranks <= n_candidates, model.seed)
    if not len(rows):
        return []
    interaction = rows_of(loader, rows).to(model.device)
    users = loader.dataset.id2token(loader.dataset.uid_field, interaction[model.USER_ID].cpu())
    histories = model.rows_of(interaction, torch.arange(len(rows))).histories
    with torch.no_grad():
        retrieved = model.propose(interaction).items.tolist()  # [S, K]
    labels = next(iter(labels_of(model).values()), [])
    ranked = np.flatnonzero(records.rows["is_ranked"]).tolist()  # [R]
    place_of = {row: place for place, row in enumerate(ranked)}
    sample = []
    for i, row in enumerate(rows.tolist()):
        target, items = int(interaction[model.ITEM_ID][i]), retrieved[i]
        best_first: Sequence[int] = range(len(items))
        probabilities: dict[str, list[float]] = {}
        if (place := place_of.get(row)) is not None:
            items = records.ranked["items"][place].tolist()
            best_first = records.ranked["best_first"][place].tolist()
            opinions = records.opinions.items()
            probabilities = {name: softmax(scores[place]).tolist() for name, scores in opinions}
        candidates = _candidates(model, items, target, best_first, labels, probabilities)
        shown = histories[i][-model.settings.prompt_max_history :]
        sample.append(
            SampledUser(
                user=str(users[i]),
                history=[model.item_texts[item] for item in shown],
                history_length=len(histories[i]),
                target=model.item_texts[target],
                retriever_rank=int(retriever_ranks[row]),
                final_rank=int(final_ranks[row]),
                was_ranked=place is not None,
                candidates=candidates,
            )
        )
    return sample


def chosen_rows(is_retrieved: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the sample in ascending order: most of them with the target among the candidates.

    Args:
        is_retrieved: bool ``[rows]``.
        seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(is_retrieved))
    hits, misses = order[is_retrieved[order]], order[~is_retrieved[order]]
    n_hits = min(len(hits), max(N_RETRIEVED, N_USERS - len(misses)))
    return np.sort(np.concatenate([hits[:n_hits], misses[: N_USERS - n_hits]]))


def rows_of(loader, rows: np.ndarray) -> Interaction:
    """Some rows of evaluation data in the loader's order; ``rows`` ascend."""
    parts, start = [], 0
    for batch in loader:
        interaction = batch[0]
        inside = rows[(rows >= start) & (rows < start + len(interaction))] - start
        parts.append(interaction[torch.from_numpy(inside)])
        start += len(interaction)
    return cat_interactions(parts)


def _candidates(
    model: LlamaRec,
    items: Sequence[int],
    target: int,
    best_first: Sequence[int],
    labels: Sequence[str],
    probabilities: Mapping[str, Sequence[float]],
) -> list[SampledCandidate]:
    """Candidates in the final order.

    Args:
        model: knows their texts.
        items: in the retriever's order, ``[K]``.
        target: the item to find.
        best_first: columns in the final order.
        labels: by column; none where the prompt has none.
        probabilities: by scorer and column; none where the row was not scored.
    """
    return [
        SampledCandidate(
            title=model.item_texts[items[column]],
            label=labels[column] if labels and probabilities else None,
            retriever_rank=column + 1,
            final_rank=rank,
            is_target=items[column] == target,
            probabilities={name: values[column] for name, values in probabilities.items()},
        )
        for rank, column in enumerate(best_first, start=1)
    ]
