"""The process around the service: uvicorn, and signals that let it finish what it has begun."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
from collections.abc import Collection
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.logging import DefaultFormatter

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.serve.app import create_app
from recbole_llamarec.serve.connections import BACKLOG, Connection, LoopErrors
from recbole_llamarec.serve.hosts import is_loopback
from recbole_llamarec.serve.limits import Limits
from recbole_llamarec.serve.service import Service

GRACE = 5  # seconds beyond the deadline after which open connections are cut


class Server(uvicorn.Server):
    """Serves a recommender; SIGTERM and SIGINT refuse new requests and finish those that came.

    Args:
        recommender: from now on only the service may use it.
        limits: of requests and of the queue.
        host, port: to bind to; port 0 takes a free one.
        token: what requests must carry.
        allow_hosts: names that requests may give in the header Host, beside this machine's own;
            asked for where only this machine reaches the service, and without a token.

    Attributes:
        service: what answers.
    """

    def __init__(
        self,
        recommender: Recommender,
        limits: Limits,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        allow_hosts: Collection[str] = (),
    ) -> None:
        hosts = allow_hosts if token is None and is_loopback(host) else None
        app = create_app(recommender, limits, token, hosts)
        log_to_stderr()
        self.service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="asyncio",
                http=cast(Any, partial(Connection, limits=limits, metrics=self.service.metrics)),
                backlog=BACKLOG,
                ws="none",
                lifespan="on",
                log_config=None,  # uvicorn's own closes the files of all other logs
                access_log=False,  # it would hold what people search for
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=math.ceil(limits.deadline) + GRACE,
            )
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, once it has started."""
        return self.servers[0].sockets[0].getsockname()[:2]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's start; the model has been warmed up when it returns."""
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        await super().startup(sockets)
        # what is loaded by now stays, and Python's collector need not search it again: a search
        # holds all threads for some tenths of a second
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's handler of signals."""
        self.service.worker.is_accepting = False
        super().handle_exit(sig, frame)


def log_to_stderr() -> None:
    """Let uvicorn's log, which is the service's, go to stderr alone, as uvicorn's default does."""
    handler = logging.StreamHandler()
    handler.setFormatter(DefaultFormatter("%(levelprefix)s %(message)s"))
    log = logging.getLogger("uvicorn")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
