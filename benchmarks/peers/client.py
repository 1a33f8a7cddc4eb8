"""Enough of an HTTP client for servers on this machine: one request a connection, streamed by lines.

It needs no package, so it runs in every engine's environment, and it costs little: on a small machine the client
takes its time from the server that is measured.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

HOST = "127.0.0.1"
LARGEST_LINE = 1 << 24


class ServerError(Exception):
    """The server answered, with something other than 200."""


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@asynccontextmanager
async def _request(port: int, head: str, payload: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
    reader, writer = await asyncio.open_connection(HOST, port, limit=LARGEST_LINE)
    try:
        fields = f"Host: {HOST}:{port}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head} HTTP/1.1\r\n{fields}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        await writer.drain()
        status = (await reader.readline()).split()
        headers = dict[str, str]()
        while (line := await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        blocks = _chunks(reader) if headers.get("transfer-encoding") == "chunked" else _rest(reader, headers)
        if status[1:2] != [b"200"]:
            text = b"".join([block async for block in blocks])
            raise ServerError(f"{b' '.join(status[1:]).decode()}: {text[:200].decode(errors='replace')}")
        yield blocks
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _rest(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    length = headers.get("content-length")
    yield await (reader.read() if length is None else reader.readexactly(int(length)))


async def post(port: int, path: str, body: dict[str, Any]) -> Any:
    """The whole answer, from JSON. Raises ServerError, OSError."""
    async with _request(port, f"POST {path}", json.dumps(body).encode()) as blocks:
        return json.loads(b"".join([block async for block in blocks]))


async def events(port: int, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed answer as they come. Raises ServerError, OSError."""
    async with _request(port, f"POST {path}", json.dumps(body).encode()) as blocks:
        rest = b""
        async for block in blocks:
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                    yield json.loads(line[5:])


async def healthy(port: int) -> bool:
    """Whether GET /health answers with 200."""
    try:
        async with _request(port, "GET /health", b""):
            return True
    except (OSError, ServerError, asyncio.IncompleteReadError):
        return False
