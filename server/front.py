"""uvicorn, run our way: 503 while the model loads, a drain when it is stopped, and no signal handlers."""

import asyncio
import contextlib
import functools
import math
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from server.errors import Loading, ServerStopping, describe
from server.guard.connection import Connection
from server.guard.labels import Label
from server.guard.limits import MAX_HEADER_BYTES
from server.settings import ServerSettings

KEEP_ALIVE_S = 75
"""Idle connections outlive those in the pools of usual clients, so that none is used while it dies."""

LAST_WORDS_S = 3
"""After the shutdown timeout, how long the error events may take to leave."""


class Front(uvicorn.Server):
    """Serves from the start; the app is put in with `open` when the engine is ready."""

    def __init__(self, settings: ServerSettings) -> None:
        self._app: FastAPI | None = None
        self._timeout = settings.shutdown_timeout
        super().__init__(
            uvicorn.Config(
                self._answer,
                interface="asgi3",
                http=functools.partial(Connection, patience=settings.body_timeout),  # pyright: ignore[reportArgumentType]
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(self._timeout) + LAST_WORDS_S,
            )
        )

    def open(self, app: FastAPI) -> None:
        """Answer with this app from now on."""
        self._app = app

    def stop(self) -> None:
        """Take no more requests, and end when those under way have ended. Asked twice, end them now."""
        if self.should_exit:
            self._end_unfinished()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to `run.serve`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: running answers get the shutdown timeout, then an error as their last event."""
        if self._app is not None:
            self._app.state.shared.draining = True
        timer = asyncio.get_running_loop().call_later(self._timeout, self._end_unfinished)
        try:
            await super().shutdown(sockets)
            if self._app is not None and (detached := self._app.state.shared.detached):
                await asyncio.wait(detached)
        finally:
            timer.cancel()

    def _end_unfinished(self) -> None:
        if self._app is not None:
            self._app.state.shared.fail_unfinished(ServerStopping())

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or Label(describe(Loading()).response())
        await app(scope, receive, send)
