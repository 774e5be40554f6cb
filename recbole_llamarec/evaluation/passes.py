"""What one pass over evaluation data records: ranks, candidates, and each scorer's opinions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from recbole_llamarec import distributed
from recbole_llamarec.scoring.fusion import Stage


def best_first_of(scores: Tensor) -> Tensor:
    """Columns of each row from the highest score to the lowest; equal ones keep their order."""
    return torch.argsort(scores, dim=1, descending=True, stable=True)


@dataclass
class EvaluationPass:
    """How one pass is scored, and its records, batch by batch.

    Attributes:
        rerank: whether candidates are scored at all.
        skip_misses: leave rows alone whose target is not among the candidates; no metric that
            depends on the target's rank alone can change there.
        all_scorers: ask scorers without weight too, for a table or a fit.
    """

    rerank: bool
    skip_misses: bool = False
    all_scorers: bool = False
    _batches: list[dict[str, np.ndarray]] = field(default_factory=list)
    _ranked: list[dict[str, np.ndarray]] = field(default_factory=list)

    def note(self, users: Tensor, targets: Tensor, ranks: Tensor, lengths: Tensor) -> None:
        """Record a batch as the retriever has ordered it.

        Args:
            users, targets, ranks, lengths: user, target item, the target's rank in the retriever's
                order (from 1) and items of the history of each row, ``[B]`` on the CPU.
        """
        columns = {"users": users, "targets": targets, "ranks": ranks, "lengths": lengths}
        batch = {name: values.numpy().copy() for name, values in columns.items()}
        batch["is_ranked"] = np.zeros(len(users), dtype=bool)
        self._batches.append(batch)

    def note_ranked(
        self,
        rows: Tensor,
        items: Tensor,
        retriever: Tensor,
        opinions: Mapping[str, Tensor],
        best_first: Tensor,
        masked: Tensor,
    ) -> None:
        """Record the rows of the batch whose candidates were scored; all on the CPU.

        Args:
            rows: their places in the batch, ``[R]``.
            items: candidates in the retriever's order, which is the order in which a prompt shows
                them, ``[R, K]``.
            retriever: its log-probabilities, ``[R, K]``.
            opinions: each scorer's scores, ``[R, K]``.
            best_first: columns in the final order, ``[R, K]``.
            masked: candidates that stand behind all others, bool ``[R, K]``.
        """
        if not len(rows):
            return
        self._batches[-1]["is_ranked"][rows.numpy()] = True
        scores = {f"score:{name}": values for name, values in opinions.items()}
        columns = {"items": items, "retriever": retriever, "best_first": best_first}
        columns |= {"masked": masked, **scores}
        self._ranked.append({name: values.numpy().copy() for name, values in columns.items()})

    def records(self, n_candidates: int, scorers: Sequence[str] = ()) -> PassRecords:
        """The records of this process.

        Args:
            n_candidates: K.
            scorers: whose scores there are to be, even where no row was scored.
        """
        if self._ranked:
            return PassRecords(_joined(self._batches), _joined(self._ranked))
        no_score = np.empty((0, n_candidates), dtype=np.float32)
        no_item = np.empty((0, n_candidates), dtype=np.int64)
        nothing: dict[str, np.ndarray]
        nothing = {"items": no_item, "retriever": no_score, "best_first": no_item}
        nothing["masked"] = np.empty((0, n_candidates), dtype=bool)
        nothing |= {f"score:{name}": no_score for name in scorers}
        return PassRecords(_joined(self._batches), nothing)


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class PassRecords:
    """The records of a whole pass.

    Attributes:
        rows: ``users``, ``targets``, ``ranks`` (by the retriever, from 1), ``lengths`` (items of
            the history) and ``is_ranked``, one value each row, ``[rows]``.
        ranked: of the rows that were scored, in their order: ``items``, ``retriever``,
            ``best_first``, ``masked`` and ``score:NAME`` of each scorer, ``[R, K]``.
    """

    rows: dict[str, np.ndarray]
    ranked: dict[str, np.ndarray]

    def of_all_processes(self, n_rows: int) -> PassRecords:
        """The records of all processes, one behind the other by rank, each row once.

        Args:
            n_rows: rows of the data that the pass was over.
        """
        parts = distributed.without_repeated_rows(
            distributed.gathered(self), n_rows, PassRecords._without_last
        )
        return PassRecords(
            _joined([part.rows for part in parts]), _joined([part.ranked for part in parts])
        )

    def __len__(self) -> int:
        return len(self.rows["users"])

    def _without_last(self) -> PassRecords:
        """All but the last row."""
        rows = {name: values[:-1] for name, values in self.rows.items()}
        n_ranked = int(rows["is_ranked"].sum())
        return PassRecords(rows, {name: own[:n_ranked] for name, own in self.ranked.items()})

    @property
    def opinions(self) -> dict[str, np.ndarray]:
        """Each scorer's scores by its name, ``[R, K]``."""
        prefix = "score:"
        return {
            name.removeprefix(prefix): scores
            for name, scores in self.ranked.items()
            if name.startswith(prefix)
        }

    @property
    def target_columns(self) -> np.ndarray:
        """The target's column among the candidates of each scored row, ``[R]``.

        It is K where the target is no candidate, or a masked one.
        """
        items = self.ranked["items"]  # [R, K]
        is_target = items == self.rows["targets"][self.rows["is_ranked"]][:, None]  # [R, K]
        is_target &= ~self.ranked["masked"]
        return np.where(is_target.any(1), is_target.argmax(1), items.shape[1])

    def ranks_by(self, stage: Stage) -> np.ndarray:
        """The target's rank in every row in the order of a stage, from 1, ``[rows]``.

        Rows that were not scored, and those whose target is no candidate or a masked one, have the
        retriever's.
        """
        scores = stage.scores(self.ranked["retriever"], self.opinions)  # [R, K]
        scores[self.ranked["masked"]] = -np.inf
        order = best_first_of(torch.from_numpy(scores)).numpy()  # [R, K]
        columns = self.target_columns  # [R]
        positions = 1 + (order == columns[:, None]).argmax(1)  # [R]
        retrieved = columns < order.shape[1]  # [R]
        ranks = self.rows["ranks"].copy()
        ranks[np.flatnonzero(self.rows["is_ranked"])[retrieved]] = positions[retrieved]
        return ranks
