"""What the service counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one service, in a registry of its own.

    Args:
        waiting: tells how many requests wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "llamarec_requests",
            "Requests by their answer.",
            ("path", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "llamarec_request_seconds",
            "From a request's arrival to its answer.",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "llamarec_batch_requests",
            "Requests that were computed together.",
            buckets=REQUESTS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "llamarec_batch_seconds",
            "Time to compute them.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.from_cache = Counter(
            "llamarec_cache_hits", "Requests answered from the cache.", registry=self.registry
        )
        self.refused = Counter(
            "llamarec_connections_refused",
            "Connections closed by the service, by the limit they went beyond.",
            ("reason",),
            registry=self.registry,
        )
        queue = Gauge("llamarec_queue_requests", "Requests that wait.", registry=self.registry)
        queue.set_function(waiting)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
