"""A line for each request on standard error: when, what, how it ended, how long it took. Never what it holds."""

import sys
from datetime import UTC, datetime
from time import monotonic
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_CLOSED_REQUEST

LONGEST_PATH = 256


class AccessLog:
    """Stands inside of `Label`. Paths are written percent-encoded, so that no client can forge a line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = monotonic(), CLIENT_CLOSED_REQUEST

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            print(_line(scope, status, monotonic() - began), file=sys.stderr, flush=True)


def _line(scope: Scope, status: int, seconds: float) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    path = quote(scope["path"], safe="/:@!$&'()*+,;=~")[:LONGEST_PATH]
    return f"{now} {quote(scope['method'])} {path} {status} {seconds:.3f}s {scope['state']['request_id']}"
