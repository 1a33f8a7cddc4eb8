"""A request to an ASGI app in this process."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


async def post(app: App, path: str, body: bytes) -> Reply:
    """POST JSON. Cancelling hangs up."""
    ended = asyncio.Event()
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, headers, parts = 500, {}, list[bytes]()

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                ended.set()

    await app(_scope(path, len(body)), receive, send)
    return Reply(status, headers, b"".join(parts))


def _scope(path: str, length: int) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
    }
