"""Every error as OpenAI's error object, {"error": {message, type, param, code}}, or Anthropic's on its paths.

Texts of errors that a client caused go out as they are; of the others only that they happened.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.errors import CoreError, DeadlineExceeded, EngineError, QueueFull, RequestError
from server.anthropic.errors import error_body

log = logging.getLogger("server")

CLIENT_CLOSED_REQUEST = 499

ANTHROPIC_PATH = "/v1/messages"

CODES = {
    401: ("invalid_api_key", "authentication_error"),
    403: ("origin_not_allowed", "permission_error"),
    404: ("not_found", "invalid_request_error"),
    405: ("method_not_allowed", "invalid_request_error"),
    408: ("request_timeout", "invalid_request_error"),
    413: ("request_too_large", "invalid_request_error"),
    421: ("host_not_allowed", "invalid_request_error"),
    431: ("header_too_large", "invalid_request_error"),
}
"""Code and type of what HTTP itself refuses."""


class UnknownModel(Exception):
    """A request names a model that is not served here."""

    def __init__(self, asked: str, served: Sequence[str]) -> None:
        super().__init__(
            f"the model {asked!r:.200} does not exist; this server serves {', '.join(map(repr, served))}"
        )


class Loading(Exception):
    """The model is not loaded yet."""


class Restarting(Exception):
    """The engine of this model died and is being started anew."""


class EngineSilent(Exception):
    """An engine that lives does not do what it should."""


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

    @property
    def headers(self) -> dict[str, str]:
        retry = {"x-should-retry": "true" if self.retry else "false"}
        return retry if self.retry_after is None else retry | {"retry-after": f"{self.retry_after:.0f}"}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body_for(self, scope: Scope | None) -> dict[str, Any]:
        """In the shape of the API that was asked; None: nobody knows which."""
        if scope is None or not is_anthropic(scope["path"]):
            return self.body()
        label = {"request_id": scope.get("state", {}).get("request_id")}
        return error_body(self.status, self.message) | label

    def response(self, headers: dict[str, str] | None = None) -> "ErrorResponse":
        return ErrorResponse(self, self.headers | (headers or {}))


class JSON(Response):
    """A JSON response by msgspec, which writes NaN as null."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), status_code, headers)


class ErrorResponse(JSON):
    """Takes its shape when it is sent, for then it is known who asked."""

    def __init__(self, answer: ErrorAnswer, headers: dict[str, str]) -> None:
        super().__init__(answer.body(), answer.status, headers)
        self._answer = answer
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shaped = JSON(self._answer.body_for(scope), self.status_code, self._headers)
        await shaped(scope, receive, send)


def is_anthropic(path: str) -> bool:
    """Whether Anthropic's clients ask there."""
    return path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/")


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
        case DeadlineExceeded():
            return ErrorAnswer(status=504, message=str(error), type="timeout_error", code="deadline_exceeded")
        case ClientDisconnect():  # read by nobody, but for logs
            return ErrorAnswer(
                status=CLIENT_CLOSED_REQUEST, message="the client hung up", type="client_error"
            )
        case EngineError():
            return _unavailable("the engine has stopped, and this answer with it", "engine_dead")
        case Loading():
            return _unavailable("the model is being loaded", "loading", retry=True)
        case Restarting():
            return _unavailable("the engine is being started anew", "restarting", retry=True)
        case EngineSilent():
            return _unavailable(str(error), "engine_silent")
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
    if isinstance(error, CoreError) and answer.status == 500:  # `guard.labels` logs what is no CoreError
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if not isinstance(error, HTTPException):
        return answer.response()
    headers = dict(error.headers or {})
    if error.detail == HTTPStatus(error.status_code).phrase:  # nobody's words: no route was found
        answer = replace(answer, message=_unrouted(request, headers.get("Allow")))
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


def _unrouted(request: Request, allowed: str | None) -> str:
    path = f"{request.url.path!r:.200}"
    if allowed is None:
        return f"nothing is at {path} here; GET /openapi.json lists every route"
    return f"{request.method:.20} is not accepted at {path}; {allowed} is"


def _of_status(status: int, detail: str) -> ErrorAnswer:
    code, kind = CODES.get(status, (None, "invalid_request_error"))
    return ErrorAnswer(status=status, message=detail or HTTPStatus(status).phrase, type=kind, code=code)
