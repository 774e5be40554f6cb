"""A long run of the service among good clients, bad ones, and ones that hang up.

Every answer under load is compared with the answer to the same request when nothing else was asked.
At the end requests are under way when the service gets SIGTERM; none of them may be lost.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from serving import made_up
from serving_load import ANSWER, HEADERS, ServiceProcess

from recbole_llamarec.recommender import Recommender

N_CLIENTS = 4
N_REQUESTS = 32  # different good ones of each path
N_LAST = 12  # under way at SIGTERM; all of them wait in the service's queue
UNDER_WAY = 0.3  # seconds from sending them to SIGTERM
MINUTE = 60.0
TITLES = ("Steins;Gate", "(A) User history: Heat", "\u200bResponse:", "क्\u200dष", "<|im_end|> x")
LINGER = struct.pack("ii", 1, 0)  # close() resets the connection


class Call(NamedTuple):
    """A request of any method."""

    method: str
    path: str
    body: bytes


class Answer(NamedTuple):
    """Status and body; status 0 where there was no answer."""

    status: int
    body: bytes


BAD = (
    Call("POST", "/recommend", b"{"),
    Call("POST", "/recommend", b"[" * 10_000),
    Call("POST", "/recommend", b'{"history": ["\xff"]}'),
    Call("POST", "/recommend", b'{"history": []}'),
    Call("POST", "/recommend", b'{"history": ["no such item"]}'),
    Call("POST", "/recommend", b'{"history": [1], "k": NaN}'),
    Call("POST", "/recommend", b'{"history": ["1"], "more": 1}'),
    Call("POST", "/rank", b'{"history": [], "candidates": [{"text": "a"}]}'),
    Call("POST", "/rank", b'{"history": [], "candidates": [{"text": "a"}, {"text": "a"}]}'),
    Call("GET", "/recommend", b""),
    Call("GET", "/nothing/../here", b""),
)


@dataclass
class Tally:
    """What happened.

    Attributes:
        counts: of good and bad requests, and of clients that hung up.
        wrong: answers that differ from the quiet one, and requests without an answer.
        memory: resident memory of the service in MB, at the start, every minute and at the end.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def soak(
    checkpoint: Path, data_path: Path | None, minutes: float, seed: int, tolerance: float
) -> Tally:
    """Run a service under load.

    Args:
        checkpoint: what is served.
        data_path: folder of data sets; the default if left out.
        minutes: of load.
        seed: of requests and of their order.
        tolerance: of a score.
    """
    calls = good_calls(Recommender.from_checkpoint(checkpoint, data_path), seed)
    options = [f"--data-path={data_path}"] if data_path else []
    tally, lock = Tally(), threading.Lock()
    with ServiceProcess(checkpoint, *options) as service:
        quiet = {call: ask_once(service.address, call) for call in (*calls, *BAD)}
        if failed := [answer for call in calls if (answer := quiet[call]).status != 200]:
            raise RuntimeError(f"{len(failed)} quiet requests failed; the first: {failed[0]}")
        tally.memory.append(round(service.memory(), 1))
        end = time.monotonic() + MINUTE * minutes

        def client(number: int) -> None:
            generator = random.Random(f"{seed} {number}")
            while time.monotonic() < end:
                kind = generator.choices(("good", "bad", "hung up"), (6, 2, 1))[0]
                call = generator.choice(BAD if kind == "bad" else calls)
                fault = ""
                if kind == "hung up":
                    hang_up(service.address, call, generator)
                else:
                    fault = difference(ask_once(service.address, call), quiet[call], tolerance)
                with lock:
                    tally.counts[kind] += 1
                    if fault:
                        tally.wrong.append(f"{call.method} {call.path} {call.body[:60]!r}: {fault}")

        threads = [threading.Thread(target=client, args=(n,)) for n in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(MINUTE, left))
            tally.memory.append(round(service.memory(), 1))
        for thread in threads:
            thread.join()
        last = [(call, sent(service.address, call)) for call in calls[:N_LAST]]
        time.sleep(UNDER_WAY)
        # leaving the context sends SIGTERM, and waits for the end of the process
    for call, connection in last:
        tally.counts["under way at SIGTERM"] += 1
        if fault := difference(received(connection), quiet[call], tolerance):
            tally.wrong.append(f"at SIGTERM: {fault}")
    return tally


def good_calls(recommender: Recommender, seed: int) -> list[Call]:
    """Requests for both paths, some of them with candidates that the data set does not have."""
    generator = np.random.default_rng(seed)
    k = min(10, recommender.model.settings.rerank_candidates)
    calls = []
    for path in ("recommend", "rank"):
        for number, request in enumerate(made_up(recommender, path, N_REQUESTS, generator, k)):
            body = json.loads(request.body)
            if path == "rank" and number % 4 == 0:
                body["candidates"][:2] = [{"text": TITLES[number // 4 % len(TITLES)]}]
            calls.append(Call("POST", request.path, json.dumps(body).encode()))
    generator.shuffle(calls)
    return [Call(*call) for call in calls]


def sent(address: tuple[str, int], call: Call) -> http.client.HTTPConnection:
    """A connection of its own on which a request has been sent."""
    connection = http.client.HTTPConnection(*address, timeout=ANSWER)
    connection.request(*call, headers=HEADERS)
    return connection


def received(connection: http.client.HTTPConnection) -> Answer:
    """What comes on a connection; status 0 where nothing does."""
    try:
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, repr(error).encode())
    finally:
        connection.close()


def ask_once(address: tuple[str, int], call: Call) -> Answer:
    """The answer to a request."""
    try:
        connection = sent(address, call)
    except OSError as error:
        return Answer(0, repr(error).encode())
    return received(connection)


def hang_up(address: tuple[str, int], call: Call, generator: random.Random) -> None:
    """Send a request or a part of it, and close or reset the connection."""
    head = f"{call.method} {call.path} HTTP/1.1\r\nHost: {address[0]}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(call.body)}\r\n\r\n"
    message = head.encode() + call.body
    length = generator.choice([len(message), generator.randrange(1, len(message))])
    with socket.create_connection(address, timeout=ANSWER) as connection:
        connection.sendall(message[:length])
        if generator.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


def difference(answer: Answer, quiet: Answer, tolerance: float) -> str:
    """How an answer differs from the quiet one; empty where it does not.

    Items and their order must be equal; numbers may differ by the tolerance.
    """
    if answer.status != quiet.status:
        return f"status {answer.status} instead of {quiet.status}: {answer.body[:80]!r}"
    if answer.body == quiet.body:
        return ""
    if quiet.status != 200:
        return f"{answer.body[:80]!r} instead of {quiet.body[:80]!r}"
    found, expected = json.loads(answer.body)["items"], json.loads(quiet.body)["items"]
    if [item["text"] for item in found] != [item["text"] for item in expected]:
        return "other items or another order"
    for item, other in zip(found, expected, strict=True):
        if item.keys() != other.keys() or item["item"] != other["item"]:
            return "another item"
        for name in ("score", "probability", "retriever_rank"):
            if not _is_near(item[name], other[name], tolerance):
                return f"{name} {item[name]} instead of {other[name]}"
    return ""


def _is_near(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance


def summary(tally: Tally) -> Sequence[str]:
    """The tally for people."""
    counts = ", ".join(f"{count} {kind}" for kind, count in tally.counts.items())
    memory = " ".join(f"{value:.0f}" for value in tally.memory)
    return [
        f"requests: {counts}",
        f"wrong or lost answers: {len(tally.wrong)}",
        f"memory of the service, MB, at the start and every minute: {memory}",
        *tally.wrong[:20],
    ]
