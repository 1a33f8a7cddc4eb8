"""Every error as OpenAI's error object: {"error": {message, type, param, code}}.

Texts of errors that a client caused go out as they are; of the others only that they happened.
"""

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core.errors import CoreError, EngineError, QueueFull, RequestError

log = logging.getLogger("server")


class UnknownModel(Exception):
    """A request names a model that is not served here."""

    def __init__(self, asked: str, served: str) -> None:
        super().__init__(f"the model {asked!r:.200} does not exist; this server serves {served!r}")


class Loading(Exception):
    """The model is not loaded yet."""


class Draining(Exception):
    """The server has been asked to stop and takes no new requests."""


class ServerStopping(Exception):
    """The server stopped before an answer was finished."""


class RequestFailed(Exception):
    """The engine could not answer this one request; others are not affected."""


@dataclass(frozen=True, kw_only=True)
class ErrorAnswer:
    """An error as a client sees it. `retry` tells OpenAI's clients whether to send the request again."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry: bool = False
    retry_after: float | None = None

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self, headers: dict[str, str] | None = None) -> Response:
        more = {"x-should-retry": "true" if self.retry else "false"} | (headers or {})
        if self.retry_after is not None:
            more["retry-after"] = f"{self.retry_after:.0f}"
        return JSON(self.body(), self.status, more)


class JSON(Response):
    """A JSON response by msgspec, which writes NaN as null."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), status_code, headers)


def describe(error: Exception) -> ErrorAnswer:
    """What to tell the client about an error."""
    match error:
        case RequestError():
            return _invalid(str(error), error.parameter, error.code)
        case UnknownModel():
            return _invalid(str(error), "model", "model_not_found", status=404)
        case QueueFull():
            return ErrorAnswer(
                status=429,
                message=str(error),
                type="rate_limit_error",
                code="queue_full",
                retry=True,
                retry_after=error.retry_after,
            )
        case EngineError():
            return _unavailable("the engine has stopped, and this answer with it", "engine_dead")
        case Loading():
            return _unavailable("the model is being loaded", "loading", retry=True)
        case Draining():
            return _unavailable("the server is stopping and takes no new requests", "draining", retry=True)
        case ServerStopping():
            return _unavailable("the server stopped before this answer was finished", "draining", retry=True)
        case RequestFailed():
            return ErrorAnswer(status=500, message=str(error), type="server_error", code="generation_failed")
        case HTTPException():
            return _of_status(error.status_code, error.detail)
        case _:
            return ErrorAnswer(status=500, message="an internal error happened", type="server_error")


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler of the app, for every class of error."""
    answer = describe(error)
    if isinstance(error, CoreError) and answer.status == 500:  # the server itself logs what is no CoreError
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
    return answer.response(headers)


def _invalid(message: str, param: str | None, code: str | None, status: int = 400) -> ErrorAnswer:
    return ErrorAnswer(status=status, message=message, type="invalid_request_error", param=param, code=code)


def _unavailable(message: str, code: str, *, retry: bool = False) -> ErrorAnswer:
    return ErrorAnswer(
        status=503,
        message=message,
        type="service_unavailable_error",
        code=code,
        retry=retry,
        retry_after=1.0 if retry else None,
    )


def _of_status(status: int, detail: str) -> ErrorAnswer:
    codes = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    message = detail or HTTPStatus(status).phrase
    return ErrorAnswer(status=status, message=message, type=kind, code=codes.get(status))
