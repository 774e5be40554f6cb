"""The door for opinions on candidates: what a scorer is, and which scorers take part in a run.

Evidence and the language model are scorers; so is anything that :func:`register_scorer` knows and
the key ``scorers`` names. None of them sees a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recbole_llamarec.ranking.protocol import ranker_names

EVIDENCE = "evidence"  # the name of recbole_llamarec.scoring.evidence.Evidence


@dataclass(frozen=True)
class Rows:
    """What a scorer may know of the rows whose candidates it scores.

    Attributes:
        histories: item ids of each row in chronological order.
        users: internal user ids, int64 ``[R]`` on the CPU; 0 is a user that training has not seen.
    """

    histories: Sequence[Sequence[int]]
    users: Tensor


class Scorer(Protocol):
    """An opinion on candidates, under a name that tables, fusion and checkpoints use."""

    name: str

    def scores(self, rows: Rows, items: Tensor) -> Tensor:
        """Score candidates.

        Args:
            rows: histories and users, R of them.
            items: candidates, int64 ``[R, K]`` on the CPU.

        Returns:
            log-probabilities among the candidates, or logarithms of any positive scale, float32
            ``[R, K]`` on the CPU.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values; empty where there is nothing."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        ...


def scores_of_open(scorer: Scorer, rows: Rows, items: Tensor, masked: Tensor) -> Tensor:
    """A scorer's scores of the candidates that take part; it sees no others.

    A prompt shows no item that nobody has proposed, and probabilities are among those that it does
    show. Rows with equally many candidates are scored together; a single one needs no opinion.

    Args:
        scorer: of the candidates.
        rows: histories and users, R of them.
        items: candidates, int64 ``[R, K]`` on the CPU, the masked ones last.
        masked: those that take no part, bool ``[R, K]`` on the CPU.

    Returns:
        float32 ``[R, K]`` on the CPU; a masked candidate has the least score of its row, and all
        have 0 where fewer than two take part.
    """
    n_open = (~masked).sum(1)  # [R]
    scores = torch.zeros(items.shape)
    for n in n_open.unique().tolist():
        if n < 2:
            continue
        chosen = (n_open == n).nonzero().squeeze(1)  # [r]
        part = Rows([rows.histories[row] for row in chosen.tolist()], rows.users[chosen])
        own = scorer.scores(part, items[chosen, :n])  # [r, n]
        scores[chosen, :n] = own
        scores[chosen, n:] = own.amin(1, keepdim=True)
    return scores


@dataclass(frozen=True)
class ScorerParts:
    """What scorers are built from.

    Attributes:
        settings: the run's ``LlamaRecSettings``.
        dataset: the training part, a RecBole data set.
        item_texts: text of each item id, the padding item's first.
        n_items: items, the padding item 0 included.
        device: of the run.
        seed: of the run.
    """

    settings: Any
    dataset: Any
    item_texts: Sequence[str]
    n_items: int
    device: torch.device
    seed: int


ScorerBuilder = Callable[[ScorerParts], Scorer]
_registered: dict[str, ScorerBuilder] = {}


def register_scorer(name: str, build: ScorerBuilder) -> None:
    """Make a scorer known under a name that the key ``scorers`` may list.

    Args:
        name: in tables, fusion and checkpoints.
        build: makes it from the parts of a run; the scorer's ``name`` is this name.

    Raises:
        ValueError: the name is taken, by a scorer or by a ranker, whose name is its scorer's.
    """
    if name in (*_registered, EVIDENCE, *ranker_names()):
        raise ValueError(f"There is a scorer {name!r} already; register yours under another name.")
    _registered[name] = build


def build_scorers(parts: ScorerParts) -> list[Scorer]:
    """The scorers of a run, in the order in which fusion tests them.

    Evidence comes first and the language model last, so that the language model has no credit for
    what the cheaper scorers say without it.

    Raises:
        ValueError: the key ``scorers`` names one that is not registered, or a name is not the one
            that its scorer was registered under, or two of the run's stages would have it.
    """
    from recbole_llamarec.scoring.evidence import Evidence
    from recbole_llamarec.scoring.language_model import LanguageModel
    from recbole_llamarec.scoring.served_model import ServedModel

    settings = parts.settings
    names = settings.scorers or ()
    if unknown := [name for name in names if name not in _registered]:
        raise ValueError(
            f"scorers: {unknown[0]!r} is not registered; known are {sorted(_registered)}. Call "
            "recbole_llamarec.scoring.scorer.register_scorer before the run starts."
        )
    scorers: list[Scorer] = []
    if settings.evidence_items:
        scorers.append(Evidence.build(parts))
    for name in names:
        scorer = _registered[name](parts)
        if scorer.name != name:
            raise ValueError(
                f"scorers: {name!r} was registered under this name, but its scorer's name is "
                f"{scorer.name!r}; they must be the same."
            )
        scorers.append(scorer)
    if settings.has_ranker:
        is_served = settings.llm.backend == "http"
        scorers.append(ServedModel(parts) if is_served else LanguageModel(parts))
    taken = [settings.retriever, *(scorer.name for scorer in scorers)]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise ValueError(
            f"scorers: {twice[0]!r} is the name of two of the run's retriever, scorers and ranker. "
            "Tables tell them apart by their names: register yours under another one."
        )
    return scorers
