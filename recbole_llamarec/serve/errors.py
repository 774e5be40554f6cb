"""Errors as JSON: the field that is wrong, and what is wrong with it."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from recbole_llamarec.finite import RowError
from recbole_llamarec.serve.schema import TAGS, ErrorAnswer

CLIENT_GONE = 499  # nobody reads it; it counts in the metrics (nginx's number)

_logger = logging.getLogger("uvicorn.error")
_MESSAGES = {
    400: "The body is no JSON.",
    401: "Give the service's token in the header: Authorization: Bearer TOKEN.",
    404: "There is nothing at this address; GET /docs lists what there is.",
    405: "This address does not take this method; GET /docs lists what it takes.",
    408: "The body did not arrive in time.",
    409: "This model has no language model that reads prompts; use POST /recommend.",
    421: "This service does not answer to the name in the header Host; --allow-host adds it.",
    499: "The client has gone.",
    500: "The service failed; its log says why.",
    503: "The service is busy or stopping; come again.",
    504: "There was no answer in time; ask for less, or come again when there is less to do.",
}


class ServiceError(Exception):
    """An answer that is no result.

    Args:
        status: of HTTP.
        message: for people; one for the status if left out.
        field: of the request.
        retry_after: seconds after which to come again.
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message or _MESSAGES[status])
        self.status = status
        self.field = field
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self) -> JSONResponse:
        """The answer."""
        content = {"error": {"field": self.field, "message": str(self)}}
        return JSONResponse(content, self.status, self.headers)

    def as_http(self) -> bytes:
        """The answer as it is sent where there is no request that an application could answer."""
        response = self.response()
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}".encode()]
        lines += [name + b": " + value for name, value in response.raw_headers]
        return b"\r\n".join([*lines, b"connection: close", b"", bytes(response.body)])


def documented(*statuses: int) -> dict[int | str, dict]:
    """The error answers of a route, for its documentation."""
    texts = {413: "The body is too large.", 422: "A field is wrong."} | _MESSAGES
    return {status: {"model": ErrorAnswer, "description": texts[status]} for status in statuses}


def handle_errors(app: FastAPI) -> None:
    """Answer every error of an app in the one form."""

    @app.exception_handler(ServiceError)
    async def known(_request: Request, error: ServiceError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first, *others = error.errors()
        message = first["msg"] + (f" ({len(others)} more fields are wrong)" if others else "")
        return ServiceError(422, message, field_of(first["loc"])).response()

    @app.exception_handler(HTTPException)
    async def by_framework(_request: Request, error: HTTPException) -> JSONResponse:
        known = error.status_code in _MESSAGES
        response = ServiceError(error.status_code, None if known else error.detail).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return ServiceError(500).response()  # uvicorn logs it


def field_of(place: tuple[int | str, ...]) -> str | None:
    """The name of a field from its place in pydantic's terms, or ``None`` for the whole body."""
    where, *parts = place
    if where == "body" and parts and isinstance(parts[0], int):
        return None  # the position of a fault in the JSON
    return ".".join(str(part) for part in parts if part not in TAGS) or None


def as_service_error(error: Exception) -> ServiceError:
    """What a client is told of an error in computing its answer."""
    if isinstance(error, ServiceError):
        return error
    is_ours = isinstance(error, RowError)  # not a fault of the request
    if isinstance(error, ValueError) and not is_ours:  # of the recommender: it names what is wrong
        return ServiceError(422, str(error))
    _logger.error("A request failed.", exc_info=error)
    return ServiceError(500)
