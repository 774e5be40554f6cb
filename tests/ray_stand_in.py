"""A recommender without a model for workers of Ray, which import it as a module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from recbole_llamarec.recommender import Recommendation


class StandIn:
    """Recommends the history's last item; a real one needs seconds to load.

    Args:
        seconds: that a history takes.
        dies_at: an item whose history kills the process; ``""`` for none.
        alive: file that says that a process has died of it, so that the next one lives; every one
            dies if left out.
    """

    def __init__(self, seconds: float = 0, dies_at: str = "", alive: Path | None = None) -> None:
        self._seconds, self._dies_at, self._alive = seconds, dies_at, alive

    def ids_of(self, tokens: Sequence[str]) -> list[int]:
        if unknown := [token for token in tokens if not token.startswith("i")]:
            raise ValueError(f"The data set has no item {unknown[0]!r}")
        return [int(token.removeprefix("i")) for token in tokens]

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10
    ) -> list[list[Recommendation]]:
        time.sleep(self._seconds * len(histories))
        for history in histories:
            if self._dies_at in history and not (self._alive and self._alive.exists()):
                if self._alive:
                    self._alive.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return [
            [Recommendation(history[-1], f"{history[-1]} é", rank, -0.1 * rank, None, rank)
             for rank in range(1, k + 1)]
            for history in histories
        ]  # fmt: skip
