"""The ranker alone among candidates that are as popular as the target.

    python benchmarks/matched.py --checkpoint saved/LlamaRec-….pth --rows 1000

Neither popularity nor the retriever's choice of candidates helps here: what is left is what the
language model knows of items and histories. Prints how often each puts the target first.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tables import markdown_table
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout

from recbole_llamarec.integration.checkpoints import load_data_and_model
from recbole_llamarec.retrieval.candidates import catalogue_scores
from recbole_llamarec.scoring.language_model import language_model_of

N_NEAREST = 5  # times as many items as negatives, of which these are drawn
BATCH = 32  # rows
POPULARITY = "popularity"  # name of its scores


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", required=True, help="of a run with a language model")
    parser.add_argument("--data", help="RecBole's data_path; its default if left out")
    parser.add_argument("--part", choices=("valid", "test"), default="valid", help="of the rows")
    parser.add_argument("--rows", type=int, default=1000, help="how many, drawn at random")
    parser.add_argument("--candidates", type=int, default=20, help="of a row")
    options = parser.parse_args(arguments)
    config, model, _, _, *evaluated = load_data_and_model(options.checkpoint, options.data)
    rows = evaluated[options.part == "test"].dataset.inter_feat
    generator = np.random.default_rng(config["seed"])
    chosen = generator.permutation(len(rows))[: options.rows]
    rows = rows[np.sort(chosen)]
    pools = matched_pools(model, rows, options.candidates, generator)
    scores = scores_by_name(model.eval(), rows, pools, generator)
    print(f"{config['dataset']}, {len(chosen)} rows of {options.part}\n")
    print(table(scores, options.candidates))


def matched_pool(
    target: int, seen: np.ndarray, counts: np.ndarray, n_candidates: int, generator
) -> np.ndarray:
    """The target, and behind it unseen items that are chosen about as often.

    Args:
        target: item id.
        seen: item ids that are no candidates.
        counts: ``[n_items]``, how often each item is chosen; item 0 pads.
        n_candidates: K.
        generator: draws the K - 1 items among the nearest by the logarithm of their counts.

    Returns:
        item ids ``[K]``.

    Raises:
        ValueError: there are fewer unseen items.
    """
    unseen = np.setdiff1d(np.arange(1, len(counts)), np.append(seen, target))
    if len(unseen) < n_candidates - 1:
        raise ValueError(
            f"--candidates: {n_candidates} need {n_candidates - 1} items that the user has not "
            f"seen, but only {len(unseen)} are left; lower it."
        )
    unseen = generator.permutation(unseen)  # equal distances stand in no order
    distances = np.abs(np.log1p(counts[unseen]) - np.log1p(counts[target]))
    nearest = unseen[np.argsort(distances, kind="stable")[: N_NEAREST * (n_candidates - 1)]]
    return np.append(target, generator.choice(nearest, n_candidates - 1, replace=False))


def matched_pools(model, rows, n_candidates: int, generator) -> np.ndarray:
    """Each row's target among items that are as popular, which its user has not seen.

    Args:
        model: a trained ``LlamaRec``.
        rows: RecBole's ``Interaction``, R histories with their targets.
        n_candidates: K.
        generator: of the candidates.

    Returns:
        item ids ``[R, K]``, the target's first.
    """
    known = model.rows_of(rows, torch.arange(len(rows)))
    of_rows = zip(rows[model.ITEM_ID].tolist(), known.histories, known.users.tolist(), strict=True)
    return np.stack(
        [
            matched_pool(
                *(target, np.union1d(history, model.seen.of(user)), model.item_counts),
                *(n_candidates, generator),
            )
            for target, history, user in of_rows
        ]
    )


@torch.no_grad()
def scores_by_name(model, rows, pools: np.ndarray, generator) -> dict[str, Tensor]:
    """What each scorer says of some candidates.

    Args:
        model: a trained ``LlamaRec``.
        rows: RecBole's ``Interaction``, R histories.
        pools: candidates of each, item ids ``[R, K]``.
        generator: of their order in the prompts.

    Returns:
        scores ``[R, K]`` in the order of the pools, of the language model, the retriever and
        popularity.
    """
    scorer = language_model_of(model.scorers.values())
    if scorer is None:
        raise ValueError("--checkpoint: the run has no language model (ranking_method: none).")
    shuffled = generator.permuted(np.tile(np.arange(pools.shape[1]), (len(pools), 1)), axis=1)
    shown = torch.from_numpy(np.take_along_axis(pools, shuffled, axis=1))  # [R, K]
    back = torch.from_numpy(np.argsort(shuffled, axis=1))
    by_model, by_retriever = [], []
    for of_batch in tqdm(torch.arange(len(pools)).split(BATCH), unit="batch", ncols=100):
        by_model.append(scorer.scores(model.rows_of(rows, of_batch), shown[of_batch]))
        predicted = catalogue_scores(model.retriever.full_sort_predict, rows[of_batch])
        by_retriever.append(predicted.cpu().gather(1, shown[of_batch]))
    return {
        scorer.name: torch.cat(by_model).gather(1, back),
        type(model.retriever).__name__: torch.cat(by_retriever).gather(1, back),
        POPULARITY: torch.from_numpy(model.item_counts[pools]),
    }


def share_first(scores: Tensor) -> Tensor:
    """Whether column 0 is the highest, float64 ``[R]``; of several highest ones its share."""
    is_highest = scores == scores.amax(1, keepdim=True)  # [R, K]
    return is_highest[:, 0].double() / is_highest.sum(1)


def table(scores: Mapping[str, Tensor], n_candidates: int) -> str:
    """Recall@1 of each scorer, with its standard error."""
    lines = []
    for name, own in scores.items():
        first = share_first(own)
        error = float(first.std()) / math.sqrt(len(first))
        recall = float(first.mean())
        lines.append([name, f"{recall:.3f}", f"{error:.3f}", f"{recall * n_candidates:.2f}"])
    return markdown_table(["scorer", "Recall@1", "standard error", "times chance"], lines)


if __name__ == "__main__":
    main()
