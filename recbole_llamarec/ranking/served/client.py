"""Asking a server for JSON within a deadline, and again after a while where it cannot answer."""

from __future__ import annotations

import json
import logging
import os
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

API_KEY = "OPENAI_API_KEY"
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # of these a later try may be answered
REMEDIES = {
    401: f"Set the environment variable {API_KEY} to the server's key.",
    403: f"Set the environment variable {API_KEY} to a key that may use the model.",
    404: "llm_http_url is where the API begins, mostly …/v1; llm_http_model is the model's name.",
}
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second try and, doubled, before others
MOST_SHOWN = 300  # characters of an answer in a message
logger = logging.getLogger(__name__)


class ServerError(ConnectionError):
    """The server could not be asked, or did not answer in time or as it was asked."""


class RefusedError(ServerError):
    """The server does not take a request of this form."""


class BadAnswerError(ServerError):
    """The server's answer is not what was asked for."""


class _Again(Exception):
    """One try has failed; ``seconds`` is how long the server asks to wait at least."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _NoRedirects(HTTPRedirectHandler):
    """A redirected request would lose its body, and take the API key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Asks one server; may be used by several threads at once.

    Args:
        url: where the API begins.
        timeout: seconds that one question may take, all tries included.

    Raises:
        ValueError: the API key cannot stand in a header.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(API_KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise ValueError(f"{API_KEY} holds characters that no key has; set it anew.")
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = build_opener(_NoRedirects)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a question: POST where there is a body, else GET.

        Args:
            path: behind the URL, such as ``/completions``.
            body: what is sent as JSON.

        Raises:
            ServerError: no answer within the deadline, or one that the request cannot change.
            RefusedError: the server does not take the request.
            BadAnswerError: the answer is no JSON object.
        """
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, self._headers)
        deadline, wait, n_tries = time.monotonic() + self.timeout, FIRST_WAIT, 0
        while True:
            n_tries += 1
            try:
                return self._answer(request, deadline)
            except _Again as failure:
                pause = max(wait, failure.seconds)
                if time.monotonic() + pause >= deadline:
                    raise ServerError(
                        f"llm_http_url: no answer of {request.full_url} within {self.timeout:g} s "
                        f"(llm_http_timeout) in {n_tries} tries; the last one: {failure}. Check "
                        "that the server runs; lower llm_http_concurrency where it has too much "
                        "to do."
                    ) from failure
                if n_tries > 2:
                    logger.warning("%s; asked again in %g s.", failure, pause)
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)

    def _answer(self, request: Request, deadline: float) -> dict[str, Any]:
        """Try once."""
        url = request.full_url
        try:
            left = max(1e-3, deadline - time.monotonic())
            with self._opener.open(request, timeout=left) as response:
                text = _read(response, deadline)
        except HTTPError as error:
            with error:
                said = f"HTTP {error.code}: {_message(_read_error(error, deadline))}"
            if error.code in AGAIN:
                raise _Again(said, _seconds(error.headers.get("Retry-After"))) from error
            if error.code in REMEDIES or error.code < 400:
                remedy = REMEDIES.get(error.code, "Give the address that it redirects to.")
                raise ServerError(f"llm_http_url: {url} answers {said} {remedy}") from error
            raise RefusedError(f"llm_http_url: {url} answers {said}") from error
        except (OSError, HTTPException) as error:
            raise _Again(f"{type(error).__name__}: {error}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise BadAnswerError(
                f"llm_http_url: {url} does not answer with a JSON object: {_shown(text)!r}. Check "
                "that it is the address of an OpenAI-compatible server."
            )
        return answer


def _read(response: Any, deadline: float) -> bytes:
    """The whole body; a server that sends it drop by drop is not waited for.

    Raises:
        TimeoutError: the deadline is over.
    """
    parts = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer was not complete in time")
    if response.length:  # http.client counts it down, and read1 does not complain
        raise TimeoutError(f"the answer ended {response.length} bytes early")
    return b"".join(parts)


def _read_error(error: HTTPError, deadline: float) -> bytes:
    """The body of an error; empty where it cannot be read."""
    try:
        return _read(error, deadline)
    except (OSError, HTTPException):
        return b""


def _message(text: bytes) -> str:
    """What a server says of an error: the message in its JSON, or its beginning."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:MOST_SHOWN]
    except (ValueError, KeyError, TypeError):
        return _shown(text)


def _shown(text: bytes) -> str:
    return text[:MOST_SHOWN].decode(errors="replace")


def _seconds(retry_after: str | None) -> float:
    """The header ``Retry-After``, seconds or a date; 0 without one."""
    if retry_after is None:
        return 0.0
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
