"""A service on a real port, and a gate to hold its model."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import httpx2

from recbole_llamarec.serve.limits import Limits
from recbole_llamarec.serve.server import Server


@dataclass
class Running:
    """A service that answers.

    Attributes:
        server: runs in a thread of this process.
        client: of HTTP, for any thread; its base is the service's address.
    """

    server: Server
    client: httpx2.Client
    thread: threading.Thread

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def recommend(self, history, **fields) -> httpx2.Response:
        return self.client.post("/recommend", json={"history": list(history), **fields})

    def rank(self, history, candidates, **fields) -> httpx2.Response:
        body = {"history": list(history), "candidates": list(candidates), **fields}
        return self.client.post("/rank", json=body)

    def rerank(self, query, documents, **fields) -> httpx2.Response:
        body = {"query": query, "documents": list(documents), **fields}
        return self.client.post("/rerank", json=body)

    def metric(self, name: str, **labels: str) -> float:
        """A value of Prometheus' registry; 0 where it has not been counted yet."""
        return self.server.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.client.close()


def run(recommender, token: str | None = None, allow_hosts=(), **limits) -> Running:
    """Start a service and wait until it answers."""
    server = Server(recommender, Limits(**limits), token=token, allow_hosts=allow_hosts)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    client = httpx2.Client(base_url="http://{}:{}".format(*server.address), timeout=30)
    return Running(server, client, thread)


def wait_until(condition, seconds: float = 20) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Gate:
    """Holds the recommender, once closed, until it is opened.

    Attributes:
        batches: the histories of each call so far.
    """

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, ...]]] = []
        self.opened = threading.Event()

    def watch(self, recommend):
        def watched(histories, *others):
            self.batches.append(list(histories))
            assert self.opened.wait(20)
            return recommend(histories, *others)

        return watched
