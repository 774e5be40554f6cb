"""A warm start without interactions: point at the history's last item among the candidates.

A small language model does not know that a letter stands for the title behind it, and learns it
late from next items, which it can hardly predict. Here the answer can be read off the prompt, so
that the letters are bound first. Pools grow with what has been learnt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.ranking.tuning import tuning_step


@dataclass
class Curriculum:
    """How many candidates a pool has: more, once the loss of the last steps is low.

    Attributes:
        sizes: numbers of candidates, in the order of their lessons.
        mastered: mean loss in nats below which a lesson is over.
        window: steps over which the loss is averaged.
    """

    sizes: tuple[int, ...] = (5, 10, 20)
    mastered: float = 0.5
    window: int = 8
    lesson: int = 0
    _losses: deque[float] = field(default_factory=deque)

    @property
    def n_candidates(self) -> int:
        """Candidates of the present lesson."""
        return self.sizes[min(self.lesson, len(self.sizes) - 1)]

    @property
    def is_over(self) -> bool:
        """Whether the last lesson is mastered."""
        return self.lesson == len(self.sizes)

    def note(self, loss: float) -> None:
        """Take the loss of one step."""
        self._losses.append(loss)
        if len(self._losses) > self.window:
            self._losses.popleft()
        if len(self._losses) == self.window and np.mean(self._losses) < self.mastered:
            self.lesson += not self.is_over
            self._losses.clear()


def binding_batch(
    n_items: int, n_prompts: int, n_candidates: int, generator: np.random.Generator
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Prompts whose answer is the last item of their history.

    The histories begin alike and grow by one item, so that packing computes them once.

    Args:
        n_items: items, the padding item 0 included.
        n_prompts: prompts, P.
        n_candidates: candidates of each, K.
        generator: draws items and the answer's place, uniformly.

    Returns:
        histories and candidates as item ids, and the answer's place in each pool.
    """
    shortest = int(generator.integers(1, 12))
    items = 1 + generator.choice(n_items - 1, shortest + n_prompts, replace=False)
    others = np.setdiff1d(np.arange(1, n_items), items)
    histories, candidates, labels = [], [], []
    for length in range(shortest, shortest + n_prompts):
        pool = generator.choice(others, n_candidates, replace=False)
        label = int(generator.integers(n_candidates))
        pool[label] = items[length - 1]
        histories.append(items[:length].tolist())
        candidates.append(pool.tolist())
        labels.append(label)
    return histories, candidates, labels


def bind_labels(
    ranker: Ranker,
    n_steps: int,
    generator: np.random.Generator,
    learning_rate: float = 1e-3,
    n_prompts: int = 8,
    warm_up: int = 20,
    batch_tokens: int = 8192,
) -> Iterator[tuple[int, int, float]]:
    """Tune a ranker's adapter on the binding task until the curriculum is over.

    Args:
        ranker: its adapter is tuned in place; its prompts have the titles.
        n_steps: most optimizer steps.
        generator: draws the prompts.
        learning_rate: of AdamW, after ``warm_up`` steps over which it rises.
        n_prompts: prompts of one step.
        batch_tokens: tokens of one forward and backward pass.

    Yields:
        after each step its number, its candidates and its loss in nats.
    """
    weights = [weight for weight in ranker.model.parameters() if weight.requires_grad]
    # The second moment forgets faster than by default: the loss falls from a plateau at once.
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    curriculum = Curriculum()
    n_items = len(ranker.prompts.titles)
    for step in range(1, n_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / warm_up)
        n_candidates = curriculum.n_candidates
        batch = binding_batch(n_items, n_prompts, n_candidates, generator)
        loss = tuning_step(ranker, *batch, optimizer, batch_tokens, clip_norm=1.0)
        curriculum.note(loss)
        yield step, n_candidates, loss
        if curriculum.is_over:
            return
