"""An answer as server-sent events. The client's hanging up aborts what it asked for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.engine.answers import Answers
from server.errors import RequestFailed, describe

log = logging.getLogger("server")

DONE = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def typed_event(content: dict[str, Any]) -> bytes:
    """An event with a name, which is the `type` of what it holds."""
    return b"event: " + content["type"].encode() + b"\n" + event(content)


class EventStream(Response):
    """Sends `events`, which are made from `answers`. An error on the way becomes the last event."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._answers = answers
        self._events = events

    def end_at(self, when: float, error: Exception) -> None:
        """Abort what is unfinished by then, on the event loop's clock; this error is the last event."""
        self._answers.end_at(when, error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with hanging_up(receive, self._answers.close):
            try:
                await self._send(send)
            finally:
                self._answers.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except OSError:
            return  # the client is gone
        except Exception as error:
            answer = describe(error)
            if answer.status == 500 and not isinstance(error, RequestFailed):  # which has been logged
                log.exception("a stream failed")
            last = event(answer.body())
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def hanging_up(receive: Receive, call: Callable[[], None]) -> AsyncIterator[None]:
    """While inside, `call` is called when the client hangs up. The request's body has been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        call()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
