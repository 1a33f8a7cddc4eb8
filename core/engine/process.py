"""The engine in a process of its own, `python -m core.engine`: what it does between its start and its end.

It reads one Start message from its standard input, connects to the socket named there, builds the engine, and
then does what it is told between steps. Standard input stays open and silent; its end means that the parent
is gone, and the process with it. This module knows nothing of text, of HTTP, or of who asks.
"""

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import msgspec
import zmq

from core.engine import messages as m
from core.engine.engine import Engine
from core.errors import CoreError

log = logging.getLogger("core.engine.process")

LINGER_MS = 2000
"""How long the last words may wait for a parent that reads slowly."""

MOST_AT_ONCE = 256
"""Messages taken in between two steps. What they have the parent say waits for the next: no flood holds up a step."""

PR_SET_PDEATHSIG = 1


class Connection:
    """The child's end of the socket."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect(address)

    def send(self, message: m.FromEngine) -> None:
        """Waits when the parent is a thousand messages behind."""
        self._socket.send(m.encode(message))

    def received(self, *, wait: bool) -> list[m.ToEngine]:
        """Messages that are there, up to MOST_AT_ONCE; `wait` waits for one. Bytes that are none are dropped."""
        if wait:
            self._socket.poll()
        messages: list[m.ToEngine] = []
        while len(messages) < MOST_AT_ONCE and self._socket.poll(0):
            try:
                messages.append(m.decode_to_engine(self._socket.recv()))
            except msgspec.DecodeError as error:
                log.error("dropped a message that cannot be read: %s", error)
        return messages

    def close(self) -> None:
        self._socket.close(linger=LINGER_MS)
        self._context.term()


def main() -> int:
    """Returns the exit code: 0 after Shutdown, 1 after an error that the parent has been told of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _on_terminate)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # says where it hangs, even in C
    os.dup2(2, 1)  # standard output belongs to the parent's user; everything said here is a log
    logging.basicConfig(stream=sys.stderr, format="engine: %(levelname)s %(message)s", level=logging.WARNING)
    try:
        start = m.read_start(sys.stdin.buffer)
    except (EOFError, msgspec.DecodeError) as error:
        log.error("this program is started by the engine's client, not by hand: %s", error)
        return 2
    _die_with(start.parent_pid)
    threading.Thread(target=_exit_at_end_of, args=(sys.stdin.fileno(),), daemon=True).start()
    connection = Connection(start.address)
    try:
        connection.send(m.Progress(""))
        engine = _build(start, connection)
        gc.freeze()  # what is there now stays, and is never looked through again
        gc.enable()
        return 1 if engine is None else _run(engine, connection)
    finally:
        connection.close()


def _build(start: m.Start, connection: Connection) -> Engine | None:
    """The engine, announced by Ready; or None, after saying why not."""
    try:
        from core.engine.build import build_engine

        engine = build_engine(
            start.config,
            lambda line: connection.send(m.Progress(line)),
            located=lambda path: connection.send(m.Located(str(path))),
        )
    except CoreError as error:
        connection.send(m.failure(error))
        return None
    except Exception as error:
        log.exception("the engine cannot start")
        text = f"the engine cannot start: {type(error).__name__}: {error}"
        connection.send(m.Failed(error="EngineError", message=text))
        return None
    connection.send(m.Ready(engine.info))
    return engine


def _run(engine: Engine, connection: Connection) -> int:
    """Obey and step until told to stop. Waits for messages only when there is nothing to compute."""
    try:
        while _obey(engine, connection):
            if engine.has_work:
                before, deltas = engine.num_steps, engine.step()
                if engine.num_steps > before:
                    connection.send(m.Deltas(deltas, engine.statistics()))
    except Exception as error:
        unexpected = not isinstance(error, CoreError)
        log.error("the engine failed: %s; what was running is lost", error, exc_info=unexpected)
        connection.send(m.EngineFailed(f"the engine failed: {type(error).__name__}: {error}"))
        return 1
    engine.close()
    return 0


def _obey(engine: Engine, connection: Connection) -> bool:
    """Take in what has been said since the last step; False after Shutdown."""
    for message in connection.received(wait=not engine.has_work):
        match message:
            case m.AddRequest(request):
                try:
                    engine.add(request)
                except CoreError as error:
                    connection.send(m.failure(error, request.request_id))
            case m.Abort(request_ids):
                deltas = engine.abort(request_ids)
                if deltas:
                    connection.send(m.Deltas(deltas, engine.statistics()))
            case m.Stop(answers):
                engine.stop(answers)
                if not engine.has_work:  # else the next step tells
                    connection.send(m.Deltas([], engine.statistics()))
            case m.AskStatistics():
                connection.send(m.Statistics(engine.statistics()))
            case m.Shutdown():
                return False
    return True


def _die_with(parent_pid: int) -> None:
    """Where the kernel offers it, be killed when the parent dies, even in the middle of a step that hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent_pid:
        os._exit(3)


def _exit_at_end_of(pipe: int) -> NoReturn:
    """The parent holds the other end for as long as it lives and never writes again."""
    while os.read(pipe, 1):
        pass
    os._exit(3)


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
