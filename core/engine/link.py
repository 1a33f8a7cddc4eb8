"""The client's end of the engine process: starts it, talks to it, notices its death, and ends it.

The socket lives in a directory that only this user may enter, and leaves the file system as soon as the two
are connected. This module moves messages; what they mean belongs to `async_engine`.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import zmq
import zmq.asyncio

from core.config import EngineConfig
from core.contracts.source import Progress
from core.engine import messages as m
from core.engine.engine import EngineInfo
from core.engine.spawn import EngineProcess, take
from core.errors import EngineDead

SOCKET_PATH_MAX = 100
"""Bytes; Unix sockets accept 107."""

LAST_WORDS_S = 0.3
"""How long a dead process's last messages may take to come out of the socket."""

SHUTDOWN_S = 5.0
"""How long an engine may take to finish its step after Shutdown, before it is killed."""


class EngineLink:
    """A running engine process. Belongs to the event loop that started it."""

    def __init__(
        self, process: EngineProcess, socket: zmq.asyncio.Socket, context: zmq.asyncio.Context
    ) -> None:
        self._process = process
        self._socket = socket
        self._context = context
        self._exit = process.exited()

    @classmethod
    async def start(
        cls, config: EngineConfig, progress: Progress, located: Callable[[str], None]
    ) -> tuple[Self, EngineInfo]:
        """Start the process and wait until its engine is ready; `located` is told early where the tokenizer is.

        Raises the CoreError that the engine raised while it was built, or EngineDead.
        """
        directory = _private_directory()
        context = zmq.asyncio.Context()
        try:
            socket = context.socket(zmq.PAIR)
            socket.set(zmq.SNDHWM, 0)  # what may be unanswered is bounded by the engine's client
            socket.bind(address := f"ipc://{directory}/engine")
            link = cls(take(), socket, context)
        except BaseException:
            context.destroy(linger=0)
            shutil.rmtree(directory, ignore_errors=True)
            raise
        try:
            link._process.tell(m.frame_start(m.Start(address, os.getpid(), config)))
            return link, await link._ready(progress, located, directory)
        except BaseException:
            await link.close(at_once=True)
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._exit.done()

    def send(self, message: m.ToEngine) -> None:
        """Never waits. What is said to a dead process is lost; `receive` tells of the death."""
        if self.is_alive:
            asyncio.ensure_future(self._socket.send(m.encode(message))).add_done_callback(_forget)

    async def receive(self) -> m.FromEngine:
        """The next message. Raises EngineDead when the process has ended and all it said was received."""
        coming = asyncio.ensure_future(self._socket.recv())
        try:
            await asyncio.wait({coming, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                await asyncio.wait({coming}, timeout=LAST_WORDS_S)
            if not coming.done():
                raise EngineDead(f"the engine process {_how_it_ended(self._exit.result())}")
            return m.decode_from_engine(coming.result())
        finally:
            coming.cancel()

    def kill(self) -> None:
        """End the process by force; `receive` tells of the death."""
        self._process.kill()

    def say_stacks(self) -> None:
        """Have it write what its threads do to the standard error that it shares with this process."""
        self._process.say_stacks()

    async def close(self, *, at_once: bool = False) -> None:
        """End the process: politely, then by force. Returns when it is gone."""
        if not at_once:
            self.send(m.Shutdown())
            await asyncio.wait({self._exit}, timeout=SHUTDOWN_S)
        if self.is_alive:
            self._process.kill()
        self._process.close()
        await self._exit
        self._context.destroy(linger=0)

    async def _ready(self, progress: Progress, located: Callable[[str], None], directory: Path) -> EngineInfo:
        while True:
            match await self.receive():
                case m.Ready(info):
                    return info
                case m.Failed() as failed:
                    raise m.raised_again(failed)
                case m.Progress(""):
                    shutil.rmtree(directory, ignore_errors=True)  # connected: nobody else needs the path
                case m.Progress(line):
                    progress(line)
                case m.Located(path):
                    located(path)
                case other:
                    raise EngineDead(f"the engine said {type(other).__name__} before it was ready")


def _private_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="core-")  # readable, writable and searchable by this user only
    if len(os.fsencode(directory)) > SOCKET_PATH_MAX - len("/engine"):
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="core-", dir="/tmp")
    return Path(directory)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _forget(sent: "asyncio.Future[Any]") -> None:
    if not sent.cancelled():
        sent.exception()
