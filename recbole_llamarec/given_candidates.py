"""Items that a caller gives: their ids, and the ranking of candidates, however many they are.

More candidates than a prompt has labels are ranked in windows, as RankGPT does (Sun et al. 2023,
arXiv 2304.09542): they go from the back to the front and overlap by half, so that the best item
can move from the last place to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from recbole_llamarec.ranking.protocol import Prompts
from recbole_llamarec.scoring.language_model import LanguageModel
from recbole_llamarec.scoring.scorer import Rows

Candidate = str | Mapping[str, str]  # an item token, or {"text": ...}
Given = TypeVar("Given")


class RankedCandidate(NamedTuple):
    """One candidate of a ranking.

    Attributes:
        place: in its pool as it was given, from 0.
        title: as the prompt shows it.
        score: the ranker's log-probability.
    """

    place: int
    title: str
    score: float


def listed(given: Sequence[Given]) -> Sequence[Given]:
    """A list of tokens or candidates, as it is.

    Raises:
        ValueError: it is a text, whose characters would pass for tokens.
    """
    if isinstance(given, str):
        raise ValueError(f"{given!r} stands where a list is asked for; write [{given!r}].")
    return given


@contextmanager
def given_ids(
    prompts: Prompts,
    ids_of: Callable[[Sequence[str]], list[int]],
    histories: Sequence[Sequence[Candidate]],
    pools: Sequence[Sequence[Candidate]],
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Item ids of histories and pools; what is given by text has one within the context only.

    Args:
        prompts: of the language model that is to rank them.
        ids_of: item ids of tokens.
        histories: of any length.
        pools: of each history.

    Raises:
        ValueError: an item is unknown, what should be a list is a text, or candidates are fewer
            than two or repeated.
    """
    rows = [*histories, *pools]
    texts = [own["text"] for row in rows for own in listed(row) if not isinstance(own, str)]
    with prompts.with_titles(texts) as added:
        id_of_text = dict(zip(texts, added, strict=True))
        ids = [
            [ids_of([own])[0] if isinstance(own, str) else id_of_text[own["text"]] for own in row]
            for row in rows
        ]
        for pool in ids[len(histories) :]:
            if len(pool) < 2 or len(set(pool)) < len(pool):
                raise ValueError(
                    f"There are {len(pool)} candidates, {len(set(pool))} of them distinct; "
                    "give two or more, each once."
                )
        yield ids[: len(histories)], ids[len(histories) :]


def rank_given(
    scorer: LanguageModel,
    ids_of: Callable[[Sequence[str]], list[int]],
    histories: Sequence[Sequence[Candidate]],
    pools: Sequence[Sequence[Candidate]],
) -> list[list[RankedCandidate]]:
    """Rank pools, best first, by :func:`rank_windows`; arguments as :func:`given_ids`."""
    prompts: Any = scorer.ranker.prompts
    with given_ids(prompts, ids_of, histories, pools) as (shown, ids):
        places = [{item: place for place, item in enumerate(pool)} for pool in ids]
        return [
            [RankedCandidate(place[item], prompts.titles[item], score) for item, score in ranked]
            for place, ranked in zip(places, rank_windows(scorer, shown, ids), strict=True)
        ]


def rank_windows(
    scorer: LanguageModel, histories: Sequence[Sequence[int]], pools: Sequence[Sequence[int]]
) -> list[list[tuple[int, float]]]:
    """Rank each pool; windows of equal size are scored together.

    Args:
        scorer: its ranker's ``max_candidates`` is the size of a window; ``None`` needs none.
        histories: item ids in chronological order.
        pools: each history's candidates, distinct item ids.

    Returns:
        each pool's items, best first, with the scores of the last window that they stood in.
    """
    size = scorer.ranker.max_candidates or max(map(len, pools), default=0)
    orders = [list(pool) for pool in pools]
    scores: list[dict[int, float]] = [{} for _ in pools]
    starts = [window_starts(len(pool), size) for pool in pools]
    for turn in range(max(map(len, starts), default=0)):
        by_length: dict[int, list[int]] = {}
        for row, begins in enumerate(starts):
            if turn < len(begins):
                by_length.setdefault(min(size, len(pools[row])), []).append(row)
        for rows in by_length.values():
            places = [slice(starts[row][turn], starts[row][turn] + size) for row in rows]
            windows = [orders[row][place] for row, place in zip(rows, places, strict=True)]
            users = torch.zeros(len(rows), dtype=torch.int64)
            shown = Rows([histories[row] for row in rows], users)
            scored = scorer.scores(shown, torch.tensor(windows)).tolist()  # [R, K]
            for row, place, window, values in zip(rows, places, windows, scored, strict=True):
                by_item = dict(zip(window, values, strict=True))
                scores[row] |= by_item
                orders[row][place] = sorted(window, key=by_item.__getitem__, reverse=True)
    return [
        [(item, by_item[item]) for item in order]
        for order, by_item in zip(orders, scores, strict=True)
    ]


def window_starts(n_candidates: int, size: int) -> list[int]:
    """Where the windows begin, from the last to the first, which begins at 0."""
    if n_candidates <= size:
        return [0]
    step = max(1, size // 2)
    return [*range(n_candidates - size, 0, -step), 0]
