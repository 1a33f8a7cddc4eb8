"""`serve`: bind, start the engine, say where, serve, drain, end the engine, return an exit code."""

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.config import EngineConfig
from core.contracts.source import Progress
from core.engine.async_engine import AsyncEngine
from core.errors import ConfigError
from server.settings import ServerSettings

if TYPE_CHECKING:
    from server.front import Front

LOOPBACK = ("127.", "::1", "localhost")


def serve(config: EngineConfig, settings: ServerSettings, *, progress: Progress | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until the engine dies. `progress` gets a line when something is slow.

    Returns 0 after a stop that was asked for, 1 when the engine died. Raises ConfigError when the address
    cannot be had, and what `AsyncEngine.start` raises.
    """
    with bound_socket(settings) as listener:
        return asyncio.run(_serve(config, settings, listener, progress or _to_stderr))


async def _serve(
    config: EngineConfig, settings: ServerSettings, listener: socket.socket, progress: Progress
) -> int:
    starting = asyncio.ensure_future(
        AsyncEngine.start(config, progress=progress, max_queued=settings.max_queued)
    )
    front = await asyncio.to_thread(_front, settings)
    with _called_on_signals(front.stop):
        serving = asyncio.ensure_future(front.serve(sockets=[listener]))
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # asked to stop before the model was loaded
            starting.cancel()
            await asyncio.wait({starting})
        try:
            engine = starting.result()
        except asyncio.CancelledError:
            return 0
        except BaseException:
            front.stop()
            await serving
            raise
        try:
            return await _serve_engine(engine, settings, front, serving, _url(listener))
        finally:
            await engine.close()


def _front(settings: ServerSettings) -> "Front":
    """The web framework takes half a second to import, in which the engine's process gets under way."""
    import server.app  # noqa: F401
    from server.front import Front

    return Front(settings)


async def _serve_engine(
    engine: AsyncEngine, settings: ServerSettings, front: "Front", serving: "asyncio.Future[None]", url: str
) -> int:
    from server.app import create_app

    app = create_app(engine, settings)
    front.open(app)
    if settings.api_key is None and not settings.host.startswith(LOOPBACK):
        _to_stderr(f"warning: everybody who can reach {url} can use this server; set an API key (--api-key)")
    print(f"Serving {app.state.shared.model_name} on {url}", flush=True)
    dying = asyncio.ensure_future(engine.wait_until_dead())
    await asyncio.wait({serving, dying}, return_when=asyncio.FIRST_COMPLETED)
    died = not engine.is_alive
    if died:
        _to_stderr(f"error: {await dying}; the server stops")
        front.stop()
    await serving
    dying.cancel()
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


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
