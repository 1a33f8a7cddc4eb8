"""Who may ask, and how much: plain ASGI, in front of every route, those that do not exist included."""

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import describe

OPEN_PATHS = frozenset({"/health", "/health/ready"})


class RequireKey:
    """Answers 401 unless `Authorization: Bearer KEY` is sent. What is not listed as open is denied."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"] not in OPEN_PATHS and not self._admits(scope):
            refused = HTTPException(401, "send the header Authorization: Bearer KEY with this server's key")
            response = describe(refused).response({"www-authenticate": "Bearer"})
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


class LimitBody:
    """Answers 413 to longer bodies: at once when the length is declared, else when it is passed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max:
            await describe(self._too_long()).response({"connection": "close"})(scope, receive, send)
            return
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._max:
                raise self._too_long()
            return message

        await self._app(scope, counted, send)

    def _too_long(self) -> HTTPException:
        return HTTPException(
            413, f"the body is longer than {self._max:,} bytes", headers={"connection": "close"}
        )
