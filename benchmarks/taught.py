"""How much of what tuning teaches a run's language model knows.

    python benchmarks/taught.py --checkpoint saved/LlamaRec-….pth --rows 500

Tuning's targets are shares of the candidates (``train_evidence``). On candidates and targets as
tuning draws them, prints the cross-entropy of the language model, the retriever and popularity,
each scaled by the factor that suits it best: the teacher itself has the least, an even guess the
most. What popularity and the language model know together and popularity alone does not is of
pairs of items.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matched import BATCH, POPULARITY, scores_by_name
from scipy.optimize import minimize
from scipy.special import log_softmax
from tables import markdown_table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout

from recbole_llamarec.integration.checkpoints import load_data_and_model
from recbole_llamarec.tuning.samples import TuningSamples


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", required=True, help="of a run with a language model")
    parser.add_argument("--data", help="RecBole's data_path; its default if left out")
    parser.add_argument("--rows", type=int, default=500, help="of training, drawn at random")
    options = parser.parse_args(arguments)
    config, model, _, train, *_ = load_data_and_model(options.checkpoint, options.data)
    model.eval()
    samples = TuningSamples(model, train.dataset, config["seed"])
    generator = np.random.default_rng(config["seed"])
    chosen = np.sort(generator.permutation(len(samples))[: options.rows])
    pools, targets = drawn(samples, chosen)
    scores = scores_by_name(model, train.dataset.inter_feat[chosen], pools, generator)
    scores[POPULARITY] = scores[POPULARITY].add(1).log()
    print(f"{config['dataset']}, {len(chosen)} rows of training\n")
    print(table(scores, torch.from_numpy(targets).double()))


def drawn(samples: TuningSamples, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates and their shares as behind the binding's steps, both ``[R, K]``."""
    step = samples.settings.train_binding_steps + 1
    starts = range(0, len(rows), BATCH)  # drawing asks the retriever
    parts = [samples.draw(rows[start : start + BATCH], step) for start in starts]
    pools = np.concatenate([np.array(part.pools) for part in parts])
    return pools, np.concatenate([part.targets for part in parts])


def fitted_nats(scores: Sequence[Tensor], targets: Tensor) -> float:
    """Least mean cross-entropy of the softmax of a weighted sum of scores.

    Args:
        scores: of each scorer, one at least, ``[R, K]``.
        targets: shares, float64 ``[R, K]``; every row sums to 1.
    """
    columns = np.stack([own.double().numpy() for own in scores])
    shares = targets.numpy()

    def nats(weights: np.ndarray) -> float:
        logits = np.tensordot(weights, columns, axes=1)  # [R, K]
        return -float((shares * log_softmax(logits, axis=1)).sum(1).mean())

    return float(minimize(nats, np.zeros(len(scores)), method="BFGS").fun)


def table(scores: Mapping[str, Tensor], targets: Tensor) -> str:
    """Nats of each scorer, and which share of what the teacher knows it has."""
    even = math.log(targets.shape[1])
    others = {name: own for name, own in scores.items() if name != POPULARITY}
    asked = {
        **{name: [own] for name, own in scores.items()},
        **{f"{POPULARITY} + {name}": [scores[POPULARITY], own] for name, own in others.items()},
    }
    nats = {"an even guess": even} | {
        name: fitted_nats(own, targets) for name, own in asked.items()
    }
    nats["the teacher"] = float(torch.special.entr(targets).sum(1).mean())
    known = even - nats["the teacher"]
    lines = [[name, f"{own:.3f}", f"{(even - own) / known:.0%}"] for name, own in nats.items()]
    return markdown_table(["scorer", "nats a row", "of the teacher's"], lines)


if __name__ == "__main__":
    main()
