"""Answers that nobody waits for any more: time that is up, clients that hang up early or do not read."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from live_server import CHAT, LONG, NAME, ThreadedServer, complete, events, wait_for
from starlette.types import Message

from core.engine.answers import Answers
from server.app import declared
from server.settings import ServerSettings
from server.sse import EventStream
from server.state import Served, State

pytest_plugins = ("server_fixtures",)

HEADER = "x-request-timeout"
GENERATING = [
    ("/v1/completions", {"prompt": "Once"} | LONG),
    ("/v1/completions", {"prompt": ["Once", "Twice"], "n": 2} | LONG),
    ("/v1/chat/completions", {"messages": CHAT} | LONG),
]


@pytest.fixture(scope="module")
def hasty(server: ThreadedServer) -> str:
    """The address of a server whose answers may take a third of a second."""
    return server.open(ServerSettings(port=0, served_model_name=NAME, request_timeout=0.3))


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_an_answer_that_takes_too_long_is_ended(
    server: ThreadedServer, hasty: str, path: str, body: dict[str, Any]
) -> None:
    whole = httpx.post(f"{hasty}{path}", json=body, timeout=60)
    with httpx.stream("POST", f"{hasty}{path}", json=body | {"stream": True}, timeout=60) as response:
        streamed = events(response)

    for error in (whole.json()["error"], streamed[-1]["error"]):
        assert error["code"] == "deadline_exceeded"
        assert error["message"] == "the answer was not finished in 0.3 s"
    assert (whole.status_code, response.status_code) == (504, 200)
    assert len(streamed) > 1
    wait_for(lambda: server.num_running() == 0, patience=2)


def test_the_header_shortens_the_time_and_never_lengthens_it(http: httpx.Client, hasty: str) -> None:
    shorter = http.post("/v1/completions", json={"prompt": "Once"} | LONG, headers={HEADER: "0.2"})
    longer = httpx.post(f"{hasty}/v1/completions", json={"prompt": "Once"} | LONG, headers={HEADER: "60"})
    enough = http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2}, headers={HEADER: "60"})

    assert shorter.json()["error"]["message"] == "the answer was not finished in 0.2 s"
    assert longer.json()["error"]["message"] == "the answer was not finished in 0.3 s"
    assert enough.status_code == 200


def test_every_route_that_takes_a_body_refuses_a_bad_header(
    server: ThreadedServer, http: httpx.Client
) -> None:
    state = State(ServerSettings(), [Served(name=NAME, spelled=NAME, engine=server.engine)])
    paths = [route.path for route in declared(state) if route.method == "POST"]
    assert len(paths) > 5

    for path in paths:
        for value in ("soon", "0", "-1", "nan", "inf", "1, 2", ""):
            response = http.post(path.format(response_id="x"), json={}, headers={HEADER: value})
            assert response.status_code == 400, path
            if not path.startswith("/v1/messages"):
                assert response.json()["error"]["param"] == HEADER
    twice = http.post("/v1/completions", json={"prompt": "a"}, headers=[(HEADER, "1"), (HEADER, "2")])
    assert twice.status_code == 400


@contextmanager
def nothing_tokenized(server: ThreadedServer) -> Iterator[None]:
    """While inside, every thread that could tokenize a prompt waits."""
    leave = threading.Event()

    async def occupy() -> None:
        for _ in range(64):
            asyncio.get_running_loop().run_in_executor(None, leave.wait)

    server.call(occupy())
    try:
        yield
    finally:
        leave.set()


def test_time_is_counted_from_the_arrival(server: ThreadedServer, hasty: str) -> None:
    with nothing_tokenized(server):
        response = httpx.post(f"{hasty}/v1/completions", json={"prompt": "Once", "max_tokens": 1}, timeout=60)

    assert response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("prompt", ["Once", ["Once"] * 9, [[5, 6, 7]] * 9])
def test_r3_hanging_up_before_the_prompts_are_tokenized_ends_it_there(
    server: ThreadedServer, http: httpx.Client, prompt: Any
) -> None:
    prompt_tokens = server.call(server.engine.statistics()).prompt_tokens
    with nothing_tokenized(server):
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json={"prompt": prompt}, timeout=0.3)
        wait_for(lambda: server.engine.num_unfinished == 0, patience=2)

    assert server.call(server.engine.statistics()).prompt_tokens == prompt_tokens


def test_a_client_that_does_not_read_is_cut_off_and_holds_up_nobody(
    server: ThreadedServer, client: openai.OpenAI
) -> None:
    url = urlsplit(server.open(ServerSettings(port=0, served_model_name=NAME, body_timeout=1.0)))
    body = json.dumps({"prompt": "Once", "n": 4, "logprobs": 5, "stream": True} | LONG)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((url.hostname, url.port))
        lazy.sendall((head + body).encode())
        assert lazy.recv(15, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK"
        wait_for(lambda: server.num_running() == 4)

        assert complete(client, max_tokens=8).usage.completion_tokens == 8
        wait_for(lambda: server.num_running() == 0, patience=10)
        with pytest.raises(ConnectionResetError):
            while lazy.recv(2**16):
                pass


def test_a_fault_in_the_middle_of_a_stream_is_told_to_the_log_and_not_to_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[bytes] = []

    async def faulty() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise ValueError("inner workings")

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    asyncio.run(EventStream(Answers([], lambda ids: None), faulty())({}, receive, send))

    assert b"an internal error happened" in sent[-2]
    assert b"inner" not in b"".join(sent)
    assert "ValueError: inner workings" in caplog.text
