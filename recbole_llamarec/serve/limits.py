"""What the service accepts from one request, and how much it does at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields


def limit(default: int | float, least: int | float, meaning: str):
    """A field with the least value allowed and its meaning, both for the command line."""
    return field(default=default, metadata={"least": least, "help": meaning})


@dataclass(frozen=True)
class Limits:
    """The limits, each an option of the command line.

    Raises:
        ValueError: lists all that are out of their range.
    """

    max_body: int = limit(262_144, 1, "bytes of a request's body")
    max_history: int = limit(500, 1, "items of a history")
    max_candidates: int = limit(100, 2, "candidates of POST /rank, documents of POST /rerank")
    max_k: int = limit(100, 1, "items of an answer of POST /recommend")
    max_text: int = limit(300, 1, "characters of an item given by its text")
    max_batch: int = limit(16, 1, "requests that are computed together; 1 computes one by one")
    queue: int = limit(64, 1, "requests that wait; more are answered by 503")
    deadline: float = limit(30.0, 0.1, "seconds until a request without an answer gets a 504")
    connections: int = limit(256, 1, "connections at a time; others are closed with a 503")
    client_connections: int = limit(128, 1, "connections at a time of one client's address")
    header_time: float = limit(10.0, 0.1, "seconds for a request's header to arrive; then 408")
    cache: int = limit(0, 0, "answers kept for requests that come again; 0 keeps none")

    def __post_init__(self) -> None:
        errors = [
            f"{limit.name} is {getattr(self, limit.name)}: it must be at least "
            f"{limit.metadata['least']}, and finite."
            for limit in fields(self)
            if not limit.metadata["least"] <= getattr(self, limit.name) < math.inf
        ]
        if errors:
            raise ValueError("\n".join(errors))
