"""uvicorn's HTTP/1.1 with limits on what connections may hold, and a loop that outlives errors."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from contextlib import suppress
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from recbole_llamarec.serve.errors import ServiceError
from recbole_llamarec.serve.limits import Limits
from recbole_llamarec.serve.metrics import Metrics

# Connections that the loop takes at a time, before it can refuse those beyond the limit: a refused
# one is open for some three rounds of the loop, and 256 + 4 * 100 files are fewer than the usual
# limit of 1,024. With uvicorn's 2,048, one round takes all files that the process may open.
BACKLOG = 100
QUIET = 10.0  # seconds between two warnings that the process can open no more files

_logger = logging.getLogger("uvicorn.error")


class Connection(H11Protocol):
    """One connection; it is closed where it goes beyond a limit, as a rule with an error as JSON.

    Timed are the header of a request, and what a client sends behind an answer that did not wait
    for the whole body. uvicorn times a connection only while nothing arrives behind an answer.

    Args:
        limits: ``connections``, ``client_connections``, ``header_time``, and ``deadline`` for an
            answer that the client does not read.
        metrics: of the service.
        others: as uvicorn gives them.
    """

    def __init__(self, *, limits: Limits, metrics: Metrics, **others: Any) -> None:
        super().__init__(**others)
        self._limits = limits
        self._metrics = metrics
        self._waiting: asyncio.TimerHandle | None = None  # for the client to send
        self._unread: asyncio.TimerHandle | None = None  # for the client to read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self._address
        n_same = sum(cast(Connection, one)._address == address for one in self.connections)
        if len(self.connections) > self._limits.connections:
            self._refuse(503, "connections")
        elif n_same > self._limits.client_connections:
            self._refuse(503, "client_connections")
        else:
            self._await_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop(self._waiting)
            self._waiting = None
        elif self._waiting is None:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._waiting, self._unread)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self._limits.deadline, self._abort_if_unread)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all errors; uvicorn's is plain text."""
        self._refuse(400, "protocol", "This is no valid HTTP/1.1 request.")

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    def _await_header(self) -> None:
        self._waiting = self.loop.call_later(self._limits.header_time, self._header_is_late)

    def _header_is_late(self) -> None:
        has_begun = bool(self.conn.trailing_data[0])
        if has_begun and self.conn.our_state is h11.IDLE:
            self._refuse(408, "header_time", "The header did not arrive in time.")
        else:  # browsers open connections in advance; they would show an answer as that to the next
            self.transport.close()

    def _abort_if_unread(self) -> None:
        self._unread = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing it would wait until all is read

    def _refuse(self, status: int, reason: str, message: str | None = None) -> None:
        self._metrics.refused.labels(reason).inc()
        self.connections.discard(self)  # it takes no other one's place until it is closed
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(ServiceError(status, message).as_http())
        self.transport.close()

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()


class LoopErrors:
    """asyncio's handler of errors outside requests, for ``loop.set_exception_handler``.

    It raises nothing: where a handler of the log raises, as one that opens its file where no more
    files can be opened, asyncio's own handler ends the loop.
    """

    def __init__(self) -> None:
        self._warned = -QUIET

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        try:
            if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
                loop.default_exception_handler(context)
            elif time.monotonic() - self._warned >= QUIET:
                self._warned = time.monotonic()
                _logger.warning(
                    "No more files can be opened, so that connections wait: raise `ulimit -n` or "
                    "lower --connections."
                )
        except Exception:
            with suppress(Exception):
                _logger.exception("An error of the event loop could not be reported.")
