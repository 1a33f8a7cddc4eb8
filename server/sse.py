"""An answer as server-sent events, or whole. Either way the client's hanging up aborts what it asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.engine.answers import Answers
from server.errors import describe

DONE = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


class EventStream(Response):
    """Sends `events`, which are made from `answers`. An error on the way becomes the last event."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"} | headers)
        self._answers = answers
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with hanging_up_ends(self._answers, receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self._events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except OSError:
                return  # the client is gone
            except Exception as error:
                last = event(describe(error).body())
                await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def hanging_up_ends(answers: Answers, receive: Receive) -> AsyncIterator[None]:
    """While inside, a disconnect closes `answers`, so that their iteration ends. Leaving closes them anyway.

    The request's body has been read.
    """

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answers.close()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        answers.close()
