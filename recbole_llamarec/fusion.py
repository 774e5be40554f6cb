"""Fusion: the final score of a candidate from the retriever, the evidence and the ranker.

The score is the retriever's log-probability among the candidates plus a weight times the ranker's,
and with ``evidence_use: fusion`` a weight times the evidence. The weights are fitted on validation
as a conditional logit (McFadden 1974): the probability that the target is chosen is a softmax over
the candidates of ``a * retriever + b * evidence + c * ranker``, and only b / a and c / a decide the
order. The likelihood uses every candidate's score, so that it needs fewer users than a metric of
the order. First the evidence is tested beside the retriever, then the ranker beside both: what does
not raise the likelihood beyond chance gets weight 0, and the ranker has no credit for what counts
say without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import chi2

SIGNIFICANT = 0.05  # p of the likelihood-ratio test below which an opinion takes part
MOST = 100.0  # greatest weight: beyond it the retriever only breaks ties


@dataclass(frozen=True)
class EvidenceFusion:
    """What was fitted for the evidence.

    Attributes:
        weight: of the evidence's scores beside the retriever's and the ranker's.
        without_ranker: the same where there is no ranker.
        gain: how much more likely the targets are with the evidence than by the retriever alone, in
            nats a row.
        p_value: of the likelihood-ratio test that the evidence adds nothing.
    """

    weight: float
    without_ranker: float
    gain: float
    p_value: float

    def summary(self) -> str:
        """One line for the log."""
        found = f"{self.gain:.4f} nats a row to the retriever, p = {self.p_value:.2g}"
        if self.without_ranker:
            return f"Fusion: the evidence has weight {self.weight:.3f} (it adds {found})."
        return f"Fusion: the evidence gets weight 0 (it adds {found})."


@dataclass(frozen=True)
class Fusion:
    """What was fitted.

    Attributes:
        weight: of the ranker's log-probabilities beside the retriever's; 0 leaves the ranker out.
        gain: how much more likely the targets are with the ranker, in nats a row.
        p_value: of the likelihood-ratio test that the ranker adds nothing.
        n_rows: rows that it was fitted on.
        evidence: the same of the evidence; ``None`` where it takes no part.
    """

    weight: float
    gain: float
    p_value: float
    n_rows: int
    evidence: EvidenceFusion | None = None

    def summary(self) -> str:
        """For the log, a line for the ranker and one for the evidence."""
        fitted = (
            f"on {self.n_rows} validation rows whose target is a candidate; the ranker adds "
            f"{self.gain:.4f} nats a row, p = {self.p_value:.2g}"
        )
        others = "the retriever"
        lines = []
        if self.evidence is not None:
            lines = [self.evidence.summary()]
            others += " and the evidence" if self.evidence.without_ranker else ""
        if self.weight:
            lines += [f"Fusion: the ranker has weight {self.weight:.3f} ({fitted})."]
        else:
            whose = "the retriever's" if others == "the retriever" else "theirs"
            lines += [
                f"Fusion: the ranker adds nothing to {others} and gets weight 0 ({fitted}). "
                f"LlamaRec's order is {whose}."
            ]
        return "\n".join(lines)


def fused(
    retriever: np.ndarray, opinions: Sequence[np.ndarray], weights: Sequence[float]
) -> np.ndarray:
    """Final scores of candidates.

    Args:
        retriever: the retriever's scores, ``[rows, K]``, of any scale.
        opinions: what else speaks for each candidate, such as the ranker's log-probabilities and
            the evidence's scores, ``[rows, K]`` each.
        weights: of each opinion, see :class:`Fusion`.

    Returns:
        ``[rows, K]``, float64.
    """
    scores = log_softmax(retriever.astype(np.float64), axis=1)
    for opinion, weight in zip(opinions, weights, strict=True):
        scores = scores + weight * opinion
    return scores


def fit_fusion(
    retriever: np.ndarray,
    ranker: np.ndarray,
    targets: np.ndarray,
    evidence: np.ndarray | None = None,
) -> Fusion:
    """Fit the weights by maximum likelihood.

    Args:
        retriever, ranker: scores and log-probabilities, ``[rows, K]``.
        targets: the target's column in each row, ``[rows]``.
        evidence: scores ``[rows, K]``; ``None`` where they take no part.
    """
    n_rows = len(targets)
    found = None if evidence is None else EvidenceFusion(0.0, 0.0, 0.0, 1.0)
    if not n_rows:
        return Fusion(0.0, 0.0, 1.0, 0, found)
    opinions = [log_softmax(retriever.astype(np.float64), axis=1)]
    known = _Fit.of(opinions, targets)
    if evidence is not None:
        fit = _Fit.of([*opinions, evidence], targets)
        weight, gain, p_value = fit.beside(known)
        found = EvidenceFusion(weight, weight, gain, p_value)
        if weight:
            opinions, known = [*opinions, evidence], fit
    fit = _Fit.of([*opinions, ranker], targets)
    weight, gain, p_value = fit.beside(known)
    if weight and found is not None and found.weight:
        found = EvidenceFusion(fit.weights[0], found.weight, found.gain, found.p_value)
    return Fusion(weight, gain, p_value, n_rows, found)


@dataclass(frozen=True)
class _Fit:
    """A conditional logit of opinions, the retriever's first.

    Attributes:
        factors: of each opinion, ``[F]``.
        loss: mean negative log-likelihood, in nats.
        n_rows: rows that it was fitted on.
    """

    factors: np.ndarray
    loss: float
    n_rows: int

    @classmethod
    def of(cls, opinions: Sequence[np.ndarray], targets: np.ndarray) -> _Fit:
        """Fit by maximum likelihood, from the retriever alone."""
        features = np.stack(opinions, axis=-1).astype(np.float64)  # [rows, K, F]
        rows = np.arange(len(targets))
        chosen = features[rows, targets]  # [rows, F]

        def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
            """Mean negative log-likelihood and its gradient."""
            log_probabilities = log_softmax(features @ factors, axis=1)  # [rows, K]
            expected = (np.exp(log_probabilities)[..., None] * features).sum(1)  # [rows, F]
            return -log_probabilities[rows, targets].mean(), (expected - chosen).mean(0)

        found = minimize(loss, np.eye(1, len(opinions))[0], jac=True)
        return cls(found.x, float(found.fun), len(targets))

    @property
    def weights(self) -> list[float]:
        """What each opinion beside the retriever weighs, from 0 to :data:`MOST`."""
        of_retriever, *others = self.factors.tolist()
        least = max(of_retriever, max(others) / MOST)
        return [min(MOST, max(0.0, other / least)) for other in others]

    def beside(self, known: _Fit) -> tuple[float, float, float]:
        """Weight, gain and p of the last opinion, which ``known`` lacks; weight 0 by chance."""
        gain = max(0.0, known.loss - self.loss)
        p_value = float(chi2.sf(2 * self.n_rows * gain, df=1))
        takes_part = self.factors[-1] > 0 and p_value < SIGNIFICANT
        return (self.weights[-1] if takes_part else 0.0), gain, p_value
