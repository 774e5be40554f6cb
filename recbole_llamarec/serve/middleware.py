"""What happens to every request before its route: it is timed, authorised, and read to a limit."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_llamarec.serve.errors import CLIENT_GONE, ServiceError
from recbole_llamarec.serve.hosts import is_loopback, name_of
from recbole_llamarec.serve.metrics import Metrics


class Observe:
    """Counts and times requests by path and status.

    Args:
        app: what answers.
        metrics: of the service.
        paths: those of the routes; all others count as one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        status = 500  # where the app raises
        begin = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begin)


class CheckHost:
    """Lets requests pass that name this machine, so that no page of another site can ask.

    A page whose own name its site lets point to 127.0.0.1 is, to the browser, of the same origin as
    the service; but the browser says that name in the header (DNS rebinding).

    Args:
        app: what answers.
        names: those that pass beside ``localhost`` and addresses of this machine.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app, self.names = app, {name_of(name) for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            name = name_of(Headers(scope=scope).get("host", ""))
            if not is_loopback(name) and name not in self.names:
                return await ServiceError(421).response()(scope, receive, send)
        await self.app(scope, receive, send)


class Authorize:
    """Lets requests pass that carry the token, in one header only.

    Args:
        app: what answers.
        token: the secret.
        open_paths: need none.
    """

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str]) -> None:
        self.app, self.token, self.open_paths = app, token.encode(), open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            headers = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(headers) > 1:
                error = ServiceError(401, "There are several Authorization headers; give one.")
                return await error.response()(scope, receive, send)
            scheme, _, given = b"".join(headers).partition(b" ")
            # both are compared in any case: the time does not tell which one was wrong
            is_right = secrets.compare_digest(given.strip(), self.token)
            if not is_right or scheme.lower() != b"bearer":
                return await ServiceError(401).response()(scope, receive, send)
        await self.app(scope, receive, send)


class ReadBody:
    """Reads a request's body before anything is done with it.

    Args:
        app: what answers.
        max_body: most bytes.
        deadline: seconds in which it must arrive.
    """

    def __init__(self, app: ASGIApp, max_body: int, deadline: float) -> None:
        self.app, self.max_body, self.deadline = app, max_body, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            async with asyncio.timeout(self.deadline):
                body = await self._read(Headers(scope=scope), receive)
        except TimeoutError:
            return await ServiceError(408).response()(scope, receive, send)
        except ServiceError as error:
            response = error.response()
            response.headers["Connection"] = "close"  # the rest of the body is not read
            return await response(scope, receive, send)
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replayed() -> Message:
            nonlocal message
            if message is None:
                return await receive()  # waits until the client goes away
            first, message = message, None
            return first

        await self.app(scope, replayed, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.max_body:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ServiceError(CLIENT_GONE)
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ServiceError:
        return ServiceError(413, f"The body is larger than {self.max_body} bytes.")
