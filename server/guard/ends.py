"""How each request ends, for whoever wants to know: the access log, and the counts of /metrics."""

from collections.abc import Callable, Sequence
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_CLOSED_REQUEST

Ended = Callable[[Scope, int, float], None]
"""Told of a request, of the status that it was answered with, and of the seconds that took, to its last byte."""


class TellEnds:
    """Stands in front of everything, so that what is refused counts, too.

    A client that left before it was answered counts as 499, and what breaks off as 500.
    """

    def __init__(self, app: ASGIApp, told: Sequence[Ended]) -> None:
        self._app = app
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = perf_counter(), CLIENT_CLOSED_REQUEST

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
            seconds = perf_counter() - began
            for ended in self._told:
                ended(scope, status, seconds)
