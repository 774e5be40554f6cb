"""Fusion: the final score of a candidate from both stages' opinions.

The score is the retriever's log-probability among the candidates plus a weight times the ranker's.
The weight is fitted on validation as a conditional logit (McFadden 1974): the probability that the
target is chosen is a softmax over the candidates of ``a * retriever + b * ranker``, and only b / a
decides the order. The likelihood uses every candidate's score, so that it needs fewer users than a
metric of the order. A ranker that does not raise it beyond chance gets weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import chi2

SIGNIFICANT = 0.05  # p of the likelihood-ratio test below which the ranker takes part
MOST = 100.0  # greatest weight: beyond it the retriever only breaks ties


@dataclass(frozen=True)
class Fusion:
    """What was fitted.

    Attributes:
        weight: of the ranker's log-probabilities beside the retriever's; 0 leaves the ranker out.
        gain: how much more likely the targets are with the ranker, in nats a row.
        p_value: of the likelihood-ratio test that the ranker adds nothing.
        n_rows: rows that it was fitted on.
    """

    weight: float
    gain: float
    p_value: float
    n_rows: int

    def summary(self) -> str:
        """One line for the log."""
        fitted = (
            f"on {self.n_rows} validation rows whose target is a candidate; the ranker adds "
            f"{self.gain:.4f} nats a row, p = {self.p_value:.2g}"
        )
        if self.weight:
            return f"Fusion: the ranker has weight {self.weight:.3f} ({fitted})."
        return (
            f"Fusion: the ranker adds nothing to the retriever and gets weight 0 ({fitted}). "
            "LlamaRec's order is the retriever's."
        )


def fused(retriever: np.ndarray, ranker: np.ndarray, weight: float) -> np.ndarray:
    """Final scores of candidates.

    Args:
        retriever: the retriever's scores, ``[rows, K]``, of any scale.
        ranker: the ranker's log-probabilities, ``[rows, K]``.
        weight: see :class:`Fusion`.

    Returns:
        ``[rows, K]``, float64.
    """
    return log_softmax(retriever.astype(np.float64), axis=1) + weight * ranker


def fit_fusion(retriever: np.ndarray, ranker: np.ndarray, targets: np.ndarray) -> Fusion:
    """Fit the weight by maximum likelihood.

    Args:
        retriever, ranker: as :func:`fused` takes them, ``[rows, K]``.
        targets: the target's column in each row, ``[rows]``.
    """
    n_rows = len(targets)
    if not n_rows:
        return Fusion(0.0, 0.0, 1.0, 0)
    retriever = log_softmax(retriever.astype(np.float64), axis=1)
    features = np.stack([retriever, ranker.astype(np.float64)], axis=-1)  # [rows, K, 2]
    chosen = features[np.arange(n_rows), targets]  # [rows, 2]

    def loss(factors: np.ndarray, n_features: int) -> tuple[float, np.ndarray]:
        """Mean negative log-likelihood and its gradient, of the first features."""
        used = features[..., :n_features]  # [rows, K, F]
        log_probabilities = log_softmax(used @ factors, axis=1)  # [rows, K]
        expected = (np.exp(log_probabilities)[..., None] * used).sum(1)  # [rows, F]
        value = -log_probabilities[np.arange(n_rows), targets].mean()
        return value, (expected - chosen[:, :n_features]).mean(0)

    alone = minimize(loss, np.ones(1), args=(1,), jac=True)
    both = minimize(loss, np.append(alone.x, 0.0), args=(2,), jac=True)
    of_retriever, of_ranker = both.x
    gain = max(0.0, float(alone.fun - both.fun))
    p_value = float(chi2.sf(2 * n_rows * gain, df=1))
    weight = 0.0
    if of_ranker > 0 and p_value < SIGNIFICANT:
        weight = float(min(MOST, of_ranker / max(of_retriever, of_ranker / MOST)))
    return Fusion(weight, gain, p_value, n_rows)
