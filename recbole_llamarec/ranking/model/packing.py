"""Prompts end to end in one row, without padding, and what several have in common only once.

A batch of prompts is a tree: the instruction that all begin with, a history that several orders of
candidates share, then what is each one's own. Laid out in one row of N tokens, everything but
attention works on N rows as it is; attention lets each segment see the segments that lead to it
(as RadixAttention does with its cache: Zheng et al. 2024, arXiv 2312.07104).

Shapes: N tokens of the row, B prompts, L tokens of a segment, C tokens before it in its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recbole_llamarec.ranking.model.states import rounded_up

MIN_SHARED = 16  # tokens; what is shorter is not worth a segment of its own


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of the row, and what comes before them in their prompts.

    Attributes:
        start, stop: place in the row.
        context: places in the row of the prompts' beginning, from first to last.
    """

    start: int
    stop: int
    context: tuple[slice, ...]

    @property
    def n_before(self) -> int:
        """C, the number of tokens before the segment in its prompts."""
        return sum(part.stop - part.start for part in self.context)


@dataclass(frozen=True)
class Packing:
    """A batch of prompts as one row.

    Attributes:
        input_ids: token ids, ``[N]`` int64.
        position_ids: place of each token in its prompt, ``[N]`` int64.
        segments: in the order of the row; behind them stand tokens that nobody reads.
        paths: places in the row of each prompt, from its first token to its last.
        multiple: what the lengths of the row and of each segment are rounded up to.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[Segment, ...]
    paths: tuple[tuple[slice, ...], ...]
    multiple: int = 1

    @property
    def ends(self) -> Tensor:
        """Place in the row of each prompt's last token, ``[B]`` int64."""
        ends = [path[-1].stop - 1 for path in self.paths]
        return torch.tensor(ends, device=self.input_ids.device)

    def rows(self, prompt: int) -> np.ndarray:
        """Place in the row of each token of a prompt, int64 ``[T]``."""
        return np.concatenate([np.arange(part.start, part.stop) for part in self.paths[prompt]])


def pack(
    prompts: Sequence[Sequence[int]], device: torch.device | None = None, multiple: int = 1
) -> Packing:
    """Lay prompts out in one row.

    Args:
        prompts: token ids of each prompt, at least one token each; equal prompts are allowed.
        device: where the tensors go.
        multiple: what lengths are rounded up to, with tokens that no prompt sees.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    if not prompts or not all(map(len, prompts)):
        raise ValueError("Only prompts of at least one token can be packed, and at least one.")
    rows = [list(prompt) for prompt in prompts]
    input_ids: list[int] = []
    position_ids: list[int] = []
    segments: list[Segment] = []
    paths: list[tuple[slice, ...]] = [()] * len(rows)

    def lay(group: list[int], begin: int, context: tuple[slice, ...]) -> None:
        """Lay out the prompts of a group, which are equal up to ``begin``."""
        first, last = rows[group[0]], rows[group[-1]]  # in order, so all others lie between
        stop = begin + common_beginning(first[begin:], last[begin:])
        start = len(input_ids)
        if stop > begin:
            input_ids.extend(first[begin:stop])
            position_ids.extend(range(begin, stop))
            segments.append(Segment(start, len(input_ids), context))
            context = (*context, slice(start, len(input_ids)))
        rest = [row for row in group if len(rows[row]) > stop]
        for row in group:
            if len(rows[row]) == stop:
                paths[row] = context
        for part in _split(rows, rest, stop):
            lay(part, stop, context)

    order = sorted(range(len(rows)), key=rows.__getitem__)
    for part in _split(rows, order, 0):
        lay(part, 0, ())
    last = segments[-1]
    n_rows = rounded_up(last.start + rounded_up(last.stop - last.start, multiple), multiple)
    filler = [0] * (n_rows - len(input_ids))
    as_tensor = partial(torch.tensor, device=device)
    return Packing(
        input_ids=as_tensor(input_ids + filler),
        position_ids=as_tensor(position_ids + filler),
        segments=tuple(segments),
        paths=tuple(paths),
        multiple=multiple,
    )


def common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """Count how many tokens two prompts have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def _split(rows: list[list[int]], order: list[int], begin: int) -> Iterator[list[int]]:
    """Part sorted prompts where neighbours share less than ``MIN_SHARED`` tokens behind begin."""
    group: list[int] = []
    for row in order:
        if group and common_beginning(rows[group[-1]][begin:], rows[row][begin:]) < MIN_SHARED:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
