"""Fusion: the final score of a candidate from the retriever and the scorers.

The score is the retriever's log-probability among the candidates plus a weight times each scorer's.
The weights are fitted on validation as a conditional logit (McFadden 1974): the probability that
the target is chosen is a softmax over the candidates of ``a * retriever + sum of b_i * scorer_i``,
and only ``b_i / a`` decide the order. The likelihood uses every candidate's score, so that it needs
fewer users than a metric of the order. The scorers are tested one after the other, each beside the
retriever and those that were let in before it: what does not raise the likelihood beyond chance
gets weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import chi2

SIGNIFICANT = 0.05  # p of the likelihood-ratio test below which a scorer takes part
MOST = 100.0  # greatest weight: beyond it the retriever only breaks ties


@dataclass(frozen=True)
class FusionStep:
    """What testing one scorer gave.

    Attributes:
        scorer: its name.
        gain: how much more likely the targets are with it, in nats a row.
        p_value: of the likelihood-ratio test that it adds nothing.
        weights: of all scorers up to this one, this one included; 0 where one adds nothing.
        beside_retriever: its weight where the retriever is all that decides with it; ``None`` in
            checkpoints of earlier versions.
    """

    scorer: str
    gain: float
    p_value: float
    weights: dict[str, float]
    beside_retriever: float | None = None


@dataclass(frozen=True)
class Stage:
    """One way to order the candidates, a row of the result table.

    Attributes:
        name: for people.
        weights: of the scorers.
        with_retriever: whether the retriever's log-probabilities count.
    """

    name: str
    weights: Mapping[str, float]
    with_retriever: bool = True

    def scores(self, retriever: np.ndarray, opinions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores of candidates in this stage.

        Args:
            retriever: the retriever's scores, ``[R, K]``, of any scale.
            opinions: each scorer's, ``[R, K]``; those with weight 0 may be missing.

        Returns:
            float64 ``[R, K]``.
        """
        if self.with_retriever:
            total = log_softmax(retriever.astype(np.float64), axis=1)
        else:
            total = np.zeros(retriever.shape)
        for scorer, weight in self.weights.items():
            if weight:
                total = total + weight * opinions[scorer]
        return total


@dataclass(frozen=True)
class Fusion:
    """How the retriever and the scorers decide together.

    Attributes:
        weights: of each scorer; ``None`` before they are fitted, when the retriever decides alone.
        with_retriever: False leaves the retriever out of the final order.
        steps: how the weights were fitted; none where the user has set them.
        n_rows: validation rows, whose target is a candidate, that they were fitted on.
    """

    weights: dict[str, float] | None
    with_retriever: bool = True
    steps: tuple[FusionStep, ...] = ()
    n_rows: int = 0

    @classmethod
    def from_setting(cls, rerank_fusion: str | float | None, scorers: Sequence[str]) -> Fusion:
        """The fusion of the key ``rerank_fusion``: ``auto``, a weight, or nothing."""
        if not scorers:
            return cls({})
        if rerank_fusion == "auto":
            return cls(None)
        if rerank_fusion is None:
            return cls({scorers[-1]: 1.0}, with_retriever=False)
        return cls({scorers[-1]: float(rerank_fusion)})

    @property
    def is_fitted(self) -> bool:
        """Whether the weights were fitted on validation."""
        return bool(self.steps)

    def takes_part(self, scorer: str) -> bool:
        """Whether a scorer can change the final order."""
        return bool(self.weights and self.weights.get(scorer))

    @property
    def changes_order(self) -> bool:
        """Whether the final order can be another than the retriever's."""
        return bool(self.weights and any(self.weights.values()))

    def final(self, retriever_name: str) -> Stage:
        """The final order, named after what decides it."""
        used = [name for name, weight in (self.weights or {}).items() if weight]
        names = [retriever_name, *used] if self.with_retriever or not used else used
        return Stage(f"final: {' + '.join(names)}", self.weights or {}, self.with_retriever)

    def stages(self, retriever_name: str, scorers: Sequence[str]) -> list[Stage]:
        """Every order that a result table shows.

        Args:
            retriever_name: of the first stage.
            scorers: names of the scorers whose scores there are, in the order of the fusion.

        Returns:
            the retriever; each scorer beside it, then the scorers cumulated (where the weights
            were fitted); each scorer alone; the final order.
        """
        stages, names = [Stage(retriever_name, {})], [retriever_name]
        cumulated = []
        for step in self.steps:
            names.append(step.scorer)
            cumulated.append(Stage(" + ".join(names), step.weights))
        stages += cumulated[:1]
        for step in self.steps[1:]:
            if step.beside_retriever is not None:
                weights = {step.scorer: step.beside_retriever}
                stages.append(Stage(f"{retriever_name} + {step.scorer}", weights))
        stages += cumulated[1:]
        stages += [Stage(scorer, {scorer: 1.0}, with_retriever=False) for scorer in scorers]
        return [*stages, self.final(retriever_name)] if scorers else stages

    def summary(self) -> str:
        """What was fitted, for the log: a line a scorer."""
        lines, others = [], "the retriever"
        for step in self.steps:
            weight = (self.weights or {})[step.scorer]
            adds = f"adds {step.gain:.4f} nats a row to {others}, p = {step.p_value:.2g}"
            lines.append(f"Fusion: {step.scorer} has weight {weight:.3f} ({adds}).")
            others += f" + {step.scorer}" if weight else ""
        rows = f"on {self.n_rows} validation rows whose target is a candidate"
        return "\n".join([*lines, f"Fusion: fitted {rows}; the final order is {others}'s."])

    def state(self) -> dict[str, Any]:
        """The fusion as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Fusion:
        """What :meth:`state` has written."""
        steps = tuple(FusionStep(**step) for step in state["steps"])
        return cls(state["weights"], state["with_retriever"], steps, state["n_rows"])


def fit_fusion(
    retriever: np.ndarray,
    opinions: Mapping[str, np.ndarray],
    targets: np.ndarray,
    masked: np.ndarray | None = None,
) -> Fusion:
    """Fit the weights by maximum likelihood.

    Args:
        retriever: scores, ``[R, K]``, of any scale.
        opinions: each scorer's scores by name, ``[R, K]``, in the order in which they are tested.
        targets: the target's column in each row, int64 ``[R]``.
        masked: candidates that nobody can choose, bool ``[R, K]``, no target among them; none if
            left out.
    """
    if not len(targets):
        nothing = dict.fromkeys(opinions, 0.0)
        return Fusion(nothing, steps=tuple(FusionStep(n, 0.0, 1.0, nothing, 0.0) for n in nothing))
    log_retriever = log_softmax(retriever.astype(np.float64), axis=1)
    unlikely = np.where(masked, -np.inf, 0.0) if masked is not None else np.zeros(retriever.shape)

    def fitted(*scores: np.ndarray) -> _Fit:
        """The retriever with some scorers."""
        return _Fit.of([log_retriever, *scores], targets, unlikely)

    by_retriever = known = fitted()
    accepted: dict[str, np.ndarray] = {}
    weights: dict[str, float] = {}
    steps = []
    for name, scores in opinions.items():
        weights = {**weights, name: 0.0}
        fit = fitted(*accepted.values(), scores)
        weight, gain, p_value = fit.beside(known)
        beside_retriever = fitted(scores).beside(by_retriever)[0] if accepted else weight
        if weight:
            accepted, known = {**accepted, name: scores}, fit
            weights |= dict(zip(accepted, fit.weights, strict=True))
        steps.append(FusionStep(name, gain, p_value, weights, beside_retriever))
    return Fusion(weights, steps=tuple(steps), n_rows=len(targets))


@dataclass(frozen=True)
class _Fit:
    """A conditional logit of scores, the retriever's first.

    Attributes:
        factors: of each, ``[F]``.
        loss: mean negative log-likelihood, in nats.
        n_rows: rows that it was fitted on.
    """

    factors: np.ndarray
    loss: float
    n_rows: int

    @classmethod
    def of(cls, scores: Sequence[np.ndarray], targets: np.ndarray, unlikely: np.ndarray) -> _Fit:
        """Fit by maximum likelihood, starting from the retriever alone.

        Args:
            scores: F of them, ``[R, K]``.
            targets: the target's column in each row, ``[R]``.
            unlikely: 0, and minus infinity for masked candidates, ``[R, K]``.
        """
        features = np.stack(scores, axis=-1).astype(np.float64)  # [R, K, F]
        rows = np.arange(len(targets))
        chosen = features[rows, targets]  # [R, F]

        def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
            """Mean negative log-likelihood and its gradient."""
            log_probabilities = log_softmax(features @ factors + unlikely, axis=1)  # [R, K]
            expected = (np.exp(log_probabilities)[..., None] * features).sum(1)  # [R, F]
            return -log_probabilities[rows, targets].mean(), (expected - chosen).mean(0)

        fitted = minimize(loss, np.eye(1, len(scores))[0], jac=True)
        return cls(fitted.x, float(fitted.fun), len(targets))

    @property
    def weights(self) -> list[float]:
        """The weight of each score beside the retriever's, from 0 to :data:`MOST`."""
        of_retriever, *others = self.factors.tolist()
        least = max(of_retriever, max(others) / MOST)
        return [min(MOST, max(0.0, other / least)) for other in others]

    def beside(self, known: _Fit) -> tuple[float, float, float]:
        """Weight, gain and p of the last score, which ``known`` lacks; weight 0 by chance."""
        gain = max(0.0, known.loss - self.loss)
        p_value = float(chi2.sf(2 * self.n_rows * gain, df=1))
        takes_part = self.factors[-1] > 0 and p_value < SIGNIFICANT
        return (self.weights[-1] if takes_part else 0.0), gain, p_value
