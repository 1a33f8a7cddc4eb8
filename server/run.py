"""`serve`: bind, start the engines, say where, serve, drain, end the engines, return an exit code."""

import asyncio
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.config import EngineConfig
from core.contracts.source import Progress
from core.contracts.telemetry import ObserverFactory
from core.errors import ConfigError
from server.fleet import Fleet
from server.settings import ServerSettings
from server.state import State

if TYPE_CHECKING:
    from server.front import Front

UNREAD_BYTES = 128 * 1024
"""Of an answer that its client does not read, so much waits in the system, which would otherwise hold megabytes."""


def serve(
    configs: EngineConfig | Sequence[EngineConfig],
    settings: ServerSettings,
    *,
    progress: Progress | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, or until an engine dies for good. The first model is the default one.

    progress  gets a line when something is slow

    Returns 0 after a stop that was asked for, 1 when an engine died. Raises ConfigError when the address cannot be
    had or the models cannot be served together, and what `AsyncEngine.start` raises.
    """
    listed = [configs] if isinstance(configs, EngineConfig) else configs
    fleet = Fleet(listed, settings, progress or _to_stderr)
    with bound_socket(settings) as listener:
        return asyncio.run(_serve(fleet, settings, listener))


async def _serve(fleet: Fleet, settings: ServerSettings, listener: socket.socket) -> int:
    starting = asyncio.ensure_future(fleet.start())
    front = await asyncio.to_thread(_front, settings)
    telemetry = await asyncio.to_thread(_telemetry)
    with _called_on_signals(front.stop):
        serving = asyncio.ensure_future(front.serve(sockets=[listener]))
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # asked to stop before the models were loaded
            starting.cancel()
            await asyncio.wait({starting})
        try:
            state = starting.result()
        except asyncio.CancelledError:
            return 0
        except BaseException:
            front.stop()
            await serving
            raise
        try:
            for factory in telemetry:
                state.observe(factory)
            return await _serve_fleet(fleet, state, front, serving, _url(listener, settings))
        finally:
            await fleet.close()


def _front(settings: ServerSettings) -> "Front":
    """The web framework takes half a second to import, in which the engine's process gets under way."""
    import server.app  # noqa: F401
    from server.front import Front

    return Front(settings)


def _telemetry() -> list[ObserverFactory]:
    """What plugins bring to watch requests. Raises ConfigError when something is wanted and cannot be had."""
    from core.discovery import load_plugins

    started = [each.start() for each in load_plugins().telemetry.values()]
    return [factory for factory in started if factory is not None]


async def _serve_fleet(
    fleet: Fleet, state: State, front: "Front", serving: "asyncio.Future[None]", url: str
) -> int:
    from server.app import app_of
    from server.guard.hosts import is_local

    front.open(app_of(state))
    if not state.settings.api_key and not is_local(state.settings.host):
        _to_stderr(f"warning: everybody who can reach {url} can use this server; set an API key (--api-key)")
    gc.freeze()  # what is there now stays; looking through it would stop every answer for tens of milliseconds
    print(f"Serving {', '.join(state.models)} on {url}", flush=True)
    watching = asyncio.ensure_future(fleet.watch())
    await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
    died = watching.done()
    if died:
        hint = "" if state.settings.restart_engine else " (--restart-engine would start it anew)"
        _to_stderr(f"error: {watching.result()}; the server stops{hint}")
        front.stop()
    await serving
    watching.cancel()
    await asyncio.wait({watching})
    return 1 if died else 0


@contextmanager
def bound_socket(settings: ServerSettings) -> Iterator[socket.socket]:
    """The address, taken before anything slow begins. Raises ConfigError naming host or port."""
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"host is {host!r}, which is no address of this machine: {error}", setting="host"
        ) from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        try:
            listener.bind(address)
            listener.listen()  # not before: two sockets that do not listen may share an address
        except OSError as error:
            raise ConfigError(
                f"cannot listen on port {port} of {host}: {error.strerror}; choose another, or 0 for any",
                setting="port",
            ) from None
        yield listener


@contextmanager
def _called_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`. Only a main thread can have signals; elsewhere nothing is installed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, caught = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _url(listener: socket.socket, settings: ServerSettings) -> str:
    scheme = "http" if settings.ssl_certfile is None else "https"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
