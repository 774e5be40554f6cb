"""The service over the small trained model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_service import Gate, Running, run


@pytest.fixture(scope="module")
def service(recommender) -> Iterator[Running]:
    """A service with the default limits, for tests that leave it as it is."""
    running = run(recommender)
    yield running
    running.stop()


@pytest.fixture
def start(recommender) -> Iterator:
    """Starts services with limits of their own."""
    started: list[Running] = []

    def start_one(token: str | None = None, **limits) -> Running:
        started.append(run(recommender, token, **limits))
        return started[-1]

    yield start_one
    for running in started:
        running.stop()


@pytest.fixture
def gate(recommender, monkeypatch) -> Iterator[Gate]:
    """A gate before ``Recommender.recommend``, closed when the test begins to use it."""
    gate = Gate()
    gate.opened.set()
    monkeypatch.setattr(recommender, "recommend", gate.watch(recommender.recommend))
    yield gate
    gate.opened.set()
