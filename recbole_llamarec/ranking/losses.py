"""The loss that every ranker has: cross-entropy among the candidates."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from recbole_llamarec.ranking.protocol import Encoded, Ranker


class LabelLoss:
    """Cross-entropy of the target among the candidates (paper, section 3.2).

    With one target this is also ListNet's top-one loss (Cao et al. 2007).
    """

    reads_candidates = True

    def __call__(self, ranker: Ranker, batch: Sequence[Encoded], targets: Tensor) -> Tensor:
        scores = ranker.scores(batch)  # [B, K]
        return cross_entropy(scores, targets.to(scores), reduction="none")  # [B]
