"""A service in a process of its own, and clients that ask it as fast as it answers."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ADDRESS = re.compile(r"running on http://([\d.]+):(\d+)")
MEMORY = re.compile(rb"^process_resident_memory_bytes (\S+)$", re.MULTILINE)
HEADERS = {"Content-Type": "application/json"}
START = 300  # seconds in which a service must be up
ANSWER = 120  # seconds in which a request must be answered


class Request(NamedTuple):
    """A POST."""

    path: str
    body: bytes


class Outcome(NamedTuple):
    """What became of a request; status 0 where the connection broke."""

    request: int
    status: int
    seconds: float
    body: bytes


class ServiceProcess:
    """``python -m recbole_llamarec.serve`` on a free port, as a context.

    Args:
        checkpoint: what it serves.
        options: further options of its command line.

    Raises:
        RuntimeError: on entering, where it does not start; holds its output.
    """

    def __init__(self, checkpoint: Path, *options: str) -> None:
        self.command = [sys.executable, "-m", "recbole_llamarec.serve"]
        self.command += [f"--checkpoint={checkpoint}", "--port=0", *options]
        self.address = ("", 0)

    def __enter__(self) -> ServiceProcess:
        self._log = tempfile.TemporaryFile("w+")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            self.command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},  # this checkout's package
        )
        end = time.monotonic() + START
        while not (found := ADDRESS.search(self._output())):
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                raise RuntimeError(f"The service has not started:\n{self._output()}")
            time.sleep(0.1)
        self.address = (found[1], int(found[2]))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(ANSWER)
        self._log.close()

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        connection = http.client.HTTPConnection(*self.address, timeout=ANSWER)
        connection.request("GET", path)
        body = connection.getresponse().read()
        connection.close()
        return body

    def memory(self) -> float:
        """Resident memory in MB."""
        found = MEMORY.search(self.get("/metrics"))
        assert found is not None  # prometheus_client tells it on Linux
        return float(found[1]) / 1e6

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read()


def ask(
    address: tuple[str, int],
    requests: Sequence[Request],
    n_clients: int,
    seconds: float,
    note: Callable[[Outcome], None],
) -> float:
    """Ask in turn from many clients, each with a connection of its own, one request at a time.

    Args:
        address: of the service.
        requests: asked one after the other, from the first again behind the last.
        n_clients: how many ask at a time.
        seconds: after which no new requests are sent; those that were sent are awaited.
        note: takes each outcome, from any thread.

    Returns:
        seconds until the last answer.
    """
    numbers = itertools.count()
    begin = time.perf_counter()

    def client() -> None:
        connection = http.client.HTTPConnection(*address, timeout=ANSWER)
        while (sent := time.perf_counter()) < begin + seconds:
            number = next(numbers) % len(requests)
            status, body = 0, b""
            try:
                connection.request("POST", *requests[number], HEADERS)
                response = connection.getresponse()
                status, body = response.status, response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
            note(Outcome(number, status, time.perf_counter() - sent, body))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin
