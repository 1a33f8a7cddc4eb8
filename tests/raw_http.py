"""HTTP by hand, for what no client library sends."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PATIENCE_S = 20.0


class Answer(NamedTuple):
    """What came back until the server closed the connection; status 0 if it said nothing."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as connection:
        yield connection


def asked(url: str, *pieces: bytes) -> Answer:
    """Send these bytes as they are, and read until the end."""
    with connected(url) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    raw = b""
    while piece := connection.recv(65536):
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head:
        return Answer(0, {}, b"")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


def head(method: str, path: str, *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")
