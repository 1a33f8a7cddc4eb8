"""Servers for tests: one in a thread, whose engine can be looked into, and one in a process to be killed."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import openai
import psutil
from fastapi import FastAPI

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.engine.room import Room
from server.app import create_app
from server.front import Front
from server.run import bound_socket
from server.settings import ServerSettings

T = TypeVar("T")

NAME = "tiny"
PATIENCE_S = 60.0
MAX_MODEL_LEN = 8192
MAX_QUEUED = 24
LONG = {"max_tokens": 8000, "ignore_eos": True}
CHAT = [{"role": "user", "content": "Tell me about the tides."}]


def engine_keywords(model: Path, **more: Any) -> dict[str, Any]:
    """An engine that answers a long request slowly enough to be interrupted."""
    keywords = {"model": str(model), "platform": "cpu", "dtype": "float32", "kv_cache_memory": "32MiB"}
    return keywords | {"max_num_seqs": 8} | more


class ThreadedServer:
    """One engine and any number of fronts, on an event loop in a thread of its own."""

    def __init__(self, config: EngineConfig, max_queued: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._fronts: list[tuple[Front, asyncio.Future[None]]] = []
        try:
            self.engine: AsyncEngine = self.call(AsyncEngine.start(config, room=Room(max_queued)))
        except BaseException:
            self._end_thread()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._close())
        self._end_thread()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def open(self, settings: ServerSettings, app: FastAPI | None = None) -> str:
        """The address of one more front before the same engine, or before this app."""
        return self.call(self._open(settings, app))

    def num_running(self) -> int:
        statistics = self.call(self.engine.statistics())
        return statistics.num_running + statistics.num_waiting

    async def _open(self, settings: ServerSettings, app: FastAPI | None) -> str:
        front = Front(settings)
        front.open(app or create_app(self.engine, settings))
        with bound_socket(settings) as listener:
            port = listener.getsockname()[1]
            self._fronts.append((front, asyncio.ensure_future(front.serve(sockets=[listener.dup()]))))
        url = f"{'http' if settings.ssl_certfile is None else 'https'}://127.0.0.1:{port}"
        await asyncio.to_thread(wait_for, lambda: _answers(url))
        return url

    async def _close(self) -> None:
        for front, serving in self._fronts:
            front.stop()
            await serving
        await self.engine.close()

    def _end_thread(self) -> None:
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class ServerProcess:
    """`serve` in a process, as the command line runs it."""

    def __init__(self, engines: Sequence[dict[str, Any]], server: dict[str, Any]) -> None:
        code = (
            "import json, sys\n"
            "from core.config import EngineConfig\n"
            "from server.run import serve\n"
            "from server.settings import ServerSettings\n"
            "engines, server = json.loads(sys.argv[1])\n"
            "sys.exit(serve([EngineConfig(**engine) for engine in engines], ServerSettings(**server)))\n"
        )
        usual = {"port": 0, "access_log": False} | ({"served_model_name": NAME} if len(engines) == 1 else {})
        arguments = json.dumps([engines, usual | server])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.url = self.line.split()[-1] if self.line else ""

    @property
    def engine(self) -> psutil.Process:
        (child,) = self.engines
        return child

    @property
    def engines(self) -> list[psutil.Process]:
        """In the order in which they were started."""
        children = psutil.Process(self.process.pid).children()
        return sorted(children, key=psutil.Process.create_time)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextmanager
def server_process(
    *models: Path, engine: dict[str, Any] | None = None, **server: Any
) -> Iterator[ServerProcess]:
    """A server of these models, in a process of its own that is killed in the end."""
    running = ServerProcess([engine_keywords(model) | (engine or {}) for model in models], server)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def wait_for(condition: Callable[[], bool], patience: float = PATIENCE_S) -> None:
    """Returns when the condition holds; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def events(response: httpx.Response) -> list[Any]:
    """The data of every server-sent event, parsed strictly; "[DONE]" stays as it is."""
    found: list[Any] = []
    for block in _blocks(response):
        assert block.startswith("data: ") and "\n" not in block
        found.append(block[6:] if block == "data: [DONE]" else json.loads(block[6:]))
    return found


def _blocks(response: httpx.Response) -> list[str]:
    text = response.read().decode()
    assert text.endswith("\n\n")
    return text[:-2].split("\n\n")


def _answers(url: str) -> bool:
    try:
        httpx.get(url, verify=False)
    except httpx.TransportError:
        return False
    return True


def complete(client: openai.OpenAI, prompt: Any = "Once upon a time", **more: Any) -> Any:
    extra = {
        name: more.pop(name)
        for name in list(more)
        if name in ("ignore_eos", "return_token_ids", "cache_salt")
    }
    given = {"temperature": 0, "max_tokens": 24} | more
    return client.completions.create(
        model=NAME, prompt=prompt, extra_body={"ignore_eos": True} | extra, **given
    )


def chat(client: openai.OpenAI, **more: Any) -> Any:
    given = {"temperature": 0, "max_completion_tokens": 24, "messages": CHAT} | more
    return client.chat.completions.create(model=NAME, extra_body={"ignore_eos": True}, **given)


def refused(http: httpx.Client, path: str, body: Any) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]
