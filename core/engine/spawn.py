"""Starts the engine's process: before anybody knows what it is to build, if `start_ahead` is called.

A process that waits on its standard input costs nothing but its imports, and those are the longest part of a
start. What it is told, and what it answers, belongs to `link`.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_ahead: "list[EngineProcess]" = []


def environment() -> dict[str, str]:
    """For a process that is to have this interpreter's import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


class EngineProcess:
    """A process that waits for a Start message on its standard input.

    It is this interpreter with this import path and none of its own, in a session of its own: the terminal's
    Ctrl-C does not reach it.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "core.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: bytes) -> None:
        """Write to its standard input, which stays open. Nothing happens when it is dead already."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def exited(self) -> "asyncio.Future[int]":
        """Its exit code, once it has one; negative for a signal."""
        import asyncio  # which takes as long as starting a process does

        loop = asyncio.get_running_loop()
        exited: asyncio.Future[int] = loop.create_future()

        def settle(code: int) -> None:
            if not exited.done():
                exited.set_result(code)

        def watch() -> None:
            code = self._process.wait()
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, code)

        threading.Thread(target=watch, name="engine exit", daemon=True).start()
        return exited

    def kill(self) -> None:
        self._process.kill()

    def say_stacks(self) -> None:
        """Have it write what each of its threads does to its standard error, even while it hangs."""
        self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """Close its standard input, which ends it if it still lives."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> None:
        """Kill it, and wait until it is gone. For one that `exited` does not watch."""
        self.kill()
        self.close()
        self._process.wait()


def start_ahead() -> None:
    """Start a process now; the next `take` gets it. One that nobody takes ends with this process."""
    _ahead.append(EngineProcess())
    atexit.register(_end_ahead)


def take() -> EngineProcess:
    """The process that was started ahead, or a new one."""
    return _ahead.pop() if _ahead else EngineProcess()


def _end_ahead() -> None:
    while _ahead:
        _ahead.pop().end()
