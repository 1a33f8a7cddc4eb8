"""Web pages that may call this server from a browser: its own, and those that were allowed."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import describe

ANY = "*"
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
EXPOSED = "x-request-id, request-id, retry-after, x-should-retry"
MAX_AGE_S = 600

_HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{0,1000}")


class AllowOrigins:
    """Answers what a browser asks beforehand, before a key is asked for, and 403 to pages that are not allowed.

    What is no web page sends no Origin, and is let through.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin") if scope["type"] == "http" else None
        if origin is None:
            await self._app(scope, receive, send)
        elif ANY in self._origins or origin.lower() in self._origins:
            await self._share(origin, headers, scope, receive, send)
        elif _own(origin, headers):
            await self._app(scope, receive, send)
        else:
            refused = HTTPException(403, f"the web page {origin[:100]!r} may not call; see --allowed-origins")
            await describe(refused).response()(scope, receive, send)

    async def _share(self, origin: str, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        shared = {"access-control-allow-origin": ANY if ANY in self._origins else origin, "vary": "origin"}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            wanted = headers.get("access-control-request-headers", "")
            shared["access-control-allow-methods"] = METHODS
            shared["access-control-allow-headers"] = wanted if _HEADER_NAMES.fullmatch(wanted) else ""
            shared["access-control-max-age"] = str(MAX_AGE_S)
            await Response(status_code=204, headers=shared)(scope, receive, send)
            return

        async def sharing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"]).update(
                    shared | {"access-control-expose-headers": EXPOSED}
                )
            await send(message)

        await self._app(scope, receive, sharing)


def _own(origin: str, headers: Headers) -> bool:
    """Whether the page came from this server: says its name, or the browser, where a proxy changed the name."""
    same = origin.lower().partition("://")[2] == headers.get("host", "").lower()
    return same or headers.get("sec-fetch-site") == "same-origin"
