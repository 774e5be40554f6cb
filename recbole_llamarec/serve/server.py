"""The process around the service: uvicorn, and signals that let it finish what it has begun."""

from __future__ import annotations

import gc
import math
import socket
from types import FrameType

import uvicorn

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.serve.app import create_app
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
    ) -> None:
        app = create_app(recommender, limits, token)
        self.service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="on",
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
        await super().startup(sockets)
        # what is loaded by now stays, and Python's collector need not search it again: a search
        # holds all threads for some tenths of a second
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's handler of signals."""
        self.service.worker.is_accepting = False
        super().handle_exit(sig, frame)
