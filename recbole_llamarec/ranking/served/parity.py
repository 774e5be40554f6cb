"""How far a server's scores are from a local model's.

Shapes: B prompts, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Parity:
    """What scores of the same prompts have in common.

    Attributes:
        n_prompts: compared.
        largest, mean: absolute difference of the labels' log-probabilities, in nats.
        n_same_first: prompts whose best candidate is the same.
        n_same_order: prompts whose candidates are all in the same order.
    """

    n_prompts: int
    largest: float
    mean: float
    n_same_first: int
    n_same_order: int

    def __str__(self) -> str:
        return (
            f"on {self.n_prompts} prompts the labels' log-probabilities differ by {self.mean:.2g} "
            f"nats on average and {self.largest:.2g} at most; the first candidate is the same in "
            f"{self.n_same_first}, the whole order in {self.n_same_order}"
        )


def parity(served: Tensor, local: Tensor) -> Parity:
    """Compare two models' scores of the same candidates.

    Args:
        served: float ``[B, K]``, log-probabilities up to a constant of each row.
        local: likewise.
    """
    differences = (served.log_softmax(1) - local.log_softmax(1)).abs()  # [B, K]
    orders = [scores.argsort(dim=1, descending=True) for scores in (served, local)]  # [B, K]
    is_same = orders[0] == orders[1]  # [B, K]
    return Parity(
        n_prompts=len(served),
        largest=float(differences.max()),
        mean=float(differences.mean()),
        n_same_first=int(is_same[:, 0].sum()),
        n_same_order=int(is_same.all(1).sum()),
    )
