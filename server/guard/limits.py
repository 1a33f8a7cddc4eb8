"""How much a client may send."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import describe

MAX_HEADER_BYTES = 16 * 1024
"""Of all headers and the target together."""


class Limits:
    """Answers 431 to longer headers and 413 to longer bodies: at once when a length is declared, else when it is
    passed. Routes get a body when all of it is there, as one piece: many small ones cost more than what is in them.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            whole = await self._body(receive)
        except HTTPException as error:
            await describe(error).response()(scope, receive, send)  # the rest of the body is thrown away
            return
        if whole is None:
            return
        unread = [{"type": "http.request", "body": whole, "more_body": False}]

        async def received() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, received, send)

    def _check_headers(self, scope: Scope) -> None:
        length = sum(len(name) + len(value) for name, value in scope["headers"])
        if length + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_HEADER_BYTES:
            raise header_too_long()
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max:
            raise self._too_long()

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None when the client is gone. Raises HTTPException."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max:
                raise self._too_long()
        return bytes(body)

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"the body is longer than {self._max:,} bytes")


def header_too_long() -> HTTPException:
    return HTTPException(431, f"target and headers are longer than {MAX_HEADER_BYTES:,} bytes")
