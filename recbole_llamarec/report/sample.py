"""Some users of the test in full: history, candidates, and what each stage made of them."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction, cat_interactions

from recbole_llamarec.evaluation import CandidateScores, EvaluationPass, best_first_of
from recbole_llamarec.llamarec import LlamaRec, histories_of
from recbole_llamarec.report.record import SampledCandidate, SampledUser

N_USERS = 50
N_RETRIEVED = 40  # rows whose target is a candidate: in the others a ranker can do nothing for it


def sample_users(
    model: LlamaRec, loader, first: EvaluationPass, last: EvaluationPass
) -> list[SampledUser]:
    """A random choice of rows, which depends on the seed and on what was retrieved alone.

    Args:
        model: as it was evaluated.
        loader: evaluation data of this process.
        first: the pass of the retriever alone.
        last: the pass of both stages; ``first`` again where there is no ranker.
    """
    retriever_ranks, final_ranks = torch.cat(first.ranks).numpy(), torch.cat(last.ranks).numpy()
    n_candidates = model.settings.rerank_candidates
    rows = chosen_rows(retriever_ranks <= n_candidates, model.seed)
    if not len(rows):
        return []
    interaction = rows_of(loader, rows).to(model.device)
    users = loader.dataset.id2token(loader.dataset.uid_field, interaction[model.USER_ID].cpu())
    every = torch.arange(len(rows))
    histories = histories_of(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN], every)
    with torch.no_grad():
        retrieved = model.retrieve(interaction)[:, :n_candidates].tolist()  # [S, K]
    is_ranked = torch.cat(last.is_ranked).nonzero().squeeze(1)  # [R]
    ranked = {row: place for place, row in enumerate(is_ranked.tolist())}
    sample = []
    for i, row in enumerate(rows.tolist()):
        target = int(interaction[model.ITEM_ID][i])
        shown = histories[i][-model.settings.prompt_max_history :]
        candidates = (
            _ranked_candidates(model, last, ranked[row], target)
            if row in ranked
            else _candidates(model, retrieved[i], target)
        )
        sample.append(
            SampledUser(
                user=str(users[i]),
                history=[model.item_texts[item] for item in shown],
                history_length=len(histories[i]),
                target=model.item_texts[target],
                retriever_rank=int(retriever_ranks[row]),
                final_rank=int(final_ranks[row]),
                was_ranked=row in ranked,
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


def _ranked_candidates(
    model: LlamaRec, last: EvaluationPass, place: int, target: int
) -> list[SampledCandidate]:
    """Candidates of the row that was put into the final order as number ``place``."""
    settings = model.settings
    scores = CandidateScores.joined(last.scores, settings.rerank_candidates).rows([place])
    best_first = best_first_of(model.final_scores(scores))[0].tolist()
    items = _joined(last.pools)[place].tolist()
    if scores.ranker is None:
        return _candidates(model, items, target, best_first)
    shown = _joined(last.orders)[place].tolist()
    labels = dict(zip(shown, settings.verbalizer_labels, strict=False))  # none with likelihood
    is_probability = settings.ranking_method != "generate"
    probabilities = scores.ranker[0].exp().tolist() if is_probability else None
    return _candidates(model, items, target, best_first, labels, probabilities)


def _candidates(
    model: LlamaRec,
    items: list[int],
    target: int,
    best_first: list[int] | None = None,
    labels: dict[int, str] | None = None,
    probabilities: list[float] | None = None,
) -> list[SampledCandidate]:
    """Candidates in the final order.

    Args:
        model: knows their texts.
        items: in the retriever's order, ``[K]``.
        target: the item to find.
        best_first: columns in the final order; the retriever's if left out.
        labels: by column.
        probabilities: by column.
    """
    return [
        SampledCandidate(
            title=model.item_texts[items[column]],
            label=labels[column] if labels else None,
            probability=probabilities[column] if probabilities else None,
            retriever_rank=column + 1,
            final_rank=rank,
            is_target=items[column] == target,
        )
        for rank, column in enumerate(best_first or range(len(items)), start=1)
    ]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if parts else torch.empty(0)
