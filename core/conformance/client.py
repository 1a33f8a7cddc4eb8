"""A client of a server in a process of its own: as much HTTP as the kit needs, with a limit on every wait."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from core.errors import EngineError

START_S = 120.0
"""What a server has to load a tiny model: its kernels may have to be compiled first."""

PATIENCE_S = 60.0
"""What an answer may take, and the end."""

_opener = build_opener(ProxyHandler({}))  # a proxy has no business between this machine and itself


class Refused(Exception):
    """An answer of status 400 or more. parameter: that the error names."""

    def __init__(self, status: int, message: str, parameter: str | None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.parameter = parameter


@dataclass(slots=True, kw_only=True)
class Served:
    """A server's process, and the files that it writes its output into. `url` is known once it is ready."""

    process: "subprocess.Popen[bytes]"
    output: Path
    errors: Path
    url: str = ""

    def ended(self) -> str:
        """Ask it to end. Returns what is wrong with how it did, or ""."""
        children = self._children()
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"still runs {PATIENCE_S:g} s after SIGTERM"
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        if code:
            return f"left with {code}: {self.complaint()}"
        return f"left {len(alive)} processes behind" if alive else ""

    def kill(self) -> None:
        """End it, and whatever it has started, at once. Nothing happens when it has ended."""
        children = self._children()
        self.process.kill()
        self.process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def complaint(self) -> str:
        """The last lines that it wrote on its standard error."""
        lines = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "nothing on its standard error"

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def ready(server: Served) -> str:
    """Wait until requests are taken, and note the address. Returns what is wrong, or ""."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            return f"left with {server.process.returncode}: {server.complaint()}"
        line = server.output.read_text(encoding="utf-8", errors="replace")
        if not server.url and line.endswith("\n"):
            server.url = line.split()[-1]
        if server.url and _says_ready(server.url):
            return ""
        time.sleep(0.05)
    return f"not ready after {START_S:g} s: {server.complaint()}"


def completion(server: Served, prompt: Sequence[int], num_tokens: int, **more: Any) -> list[int]:
    """The likeliest tokens after a prompt, asked for whole. Raises Refused, or OSError when nothing answers."""
    with _posted(server, _body(prompt, num_tokens, **more)) as response:
        return json.loads(response.read())["choices"][0]["token_ids"]


def streamed(server: Served, prompt: Sequence[int], num_tokens: int, **more: Any) -> list[int]:
    """The same, asked for token by token. Raises EngineError when the stream ends without having said so."""
    found: list[int] = []
    with _posted(server, _body(prompt, num_tokens, stream=True, logprobs=0, **more)) as response:
        for event in _events(response):
            if event == "[DONE]":
                return found
            content = json.loads(event)
            if "error" in content:
                raise EngineError(f"the stream ended in an error: {content['error']}")
            found += [token for choice in content["choices"] for token in choice["token_ids"]]
    raise EngineError("the stream broke off")


def _body(prompt: Sequence[int], num_tokens: int, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": list(prompt), "max_tokens": num_tokens, "temperature": 0.0}
    return asked | {"ignore_eos": True, "return_token_ids": True} | more


def _posted(server: Served, body: dict[str, Any]) -> HTTPResponse:
    request = Request(
        f"{server.url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        return _opener.open(request, timeout=PATIENCE_S)
    except HTTPError as error:
        with error:
            described: Any = json.loads(error.read()).get("error", {})
        raise Refused(error.code, str(described.get("message")), described.get("param")) from None


def _events(response: HTTPResponse) -> Iterator[str]:
    for line in response:
        text = line.decode().strip()
        if text.startswith("data: "):
            yield text.removeprefix("data: ")


def _says_ready(url: str) -> bool:
    try:
        with _opener.open(f"{url}/health/ready", timeout=5) as response:
            return response.status == 200
    except HTTPError as error:
        error.close()
    except OSError:
        pass
    return False
