"""Who may ask: closed is whatever does not declare itself open, routes that do not exist included."""

import hmac
from collections.abc import Iterator, Sequence
from hashlib import sha256

from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import describe
from server.routes import Access, Route


class RequireKey:
    """Answers 401 unless a key is sent, as OpenAI's clients do or as Anthropic's."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], routes: Sequence[Route]) -> None:
        self._app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._routes = [(route, compile_path(route.path)[0]) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope) or self._admits(scope):
            await self._app(scope, receive, send)
        else:
            message = "send this server's key as Authorization: Bearer KEY, or as x-api-key: KEY"
            response = describe(HTTPException(401, message)).response({"www-authenticate": "Bearer"})
            await response(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        """What the route declares that the request will reach; without one, no."""
        method = {"HEAD": "GET"}.get(scope.get("method", ""), scope.get("method"))
        reached = (r for r, pattern in self._routes if r.method == method and pattern.match(scope["path"]))
        route = next(reached, None)
        return route is not None and route.access is Access.OPEN

    def _admits(self, scope: Scope) -> bool:
        """Every key is compared, found or not, and all in the same time, of whatever length."""
        given = [sha256(key).digest() for key in _sent_keys(scope)]
        same = [hmac.compare_digest(key, known) for key in given for known in self._digests]
        return any(same)


def _sent_keys(scope: Scope) -> Iterator[bytes]:
    for name, value in scope["headers"]:
        scheme, _, key = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            yield key.strip()
        elif name == b"x-api-key":
            yield value.strip()
