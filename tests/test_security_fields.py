"""Numbers of every size in every field (S11, S13), and a canary beside whatever is bad (R1)."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import httpx
import openai
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from live_server import CHAT, MAX_MODEL_LEN, MAX_QUEUED, ThreadedServer, complete, refused, wait_for
from raw_http import connected, head

from server.app import create_app, declared
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

FAST_S = 3.0
VOCABULARY = 320
COMPLETIONS = "/v1/completions"
SMALLEST: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": [5, 9], "max_tokens": 2},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/messages": {"messages": CHAT, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": CHAT},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}
STRANGE = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        "-1",
        "-0.0",
        "0",
        "1e-320",
        "0.5",
        "1.5",
        "1e3",
        "2e18",
    ),
    *(
        str(2**31),
        str(2**32),
        str(2**63 - 1),
        str(2**63),
        str(-(2**63)),
        str(2**64),
        "9" * 400,
        "-" + "9" * 5000,
    ),
    *("true", "false", '"5"', '""', "[]", "{}", "[1]", '{"a": 1}'),
]


def numeric_fields(server: ThreadedServer) -> list[tuple[str, str]]:
    """Every field of every body that can be a number, with its route."""
    routes = declared(create_app(server.engine, ServerSettings()).state.shared)
    return sorted(
        {
            (route.path, field.alias or name)
            for route in routes
            if route.body is not None
            for name, field in route.body.model_fields.items()
            if is_number(field.annotation)
        }
    )


def is_number(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(map(is_number, get_args(annotation)))
    return annotation in (int, float)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_s11_a_number_of_any_size_is_honoured_or_refused_at_once(
    server: ThreadedServer, http: httpx.Client, data: st.DataObject
) -> None:
    fields = numeric_fields(server)
    assert len(fields) > 40
    path, field = data.draw(st.sampled_from(fields))
    number = data.draw(
        st.sampled_from(STRANGE)
        | st.integers().map(str)
        | st.floats(allow_nan=False, allow_infinity=False).map(json.dumps)
    )
    assume("tokens" not in field or not number.isdecimal() or int(number) < 3 or int(number) >= 2**31)
    body = {k: v for k, v in SMALLEST.get(path, {}).items() if k != field}
    raw = json.dumps(body)[:-1] + (", " if body else "") + f'"{field}": {number}}}'

    began = time.monotonic()
    response = http.post(path, content=raw)
    assert time.monotonic() - began < FAST_S, raw
    assert response.status_code in (200, 400), (path, raw, response.text)
    if number in ("NaN", "Infinity", "-Infinity", "1e400", "true", '"5"', str(2**64), "9" * 400):
        assert response.status_code == 400, (path, raw)
    if response.status_code == 400:
        assert response.json()["error"]["message"]


def test_s11_many_prompts_times_many_answers_are_bounded(http: httpx.Client) -> None:
    body = {"prompt": [[5]] * (MAX_QUEUED + 1), "n": 128, "max_tokens": 1}
    assert refused(http, COMPLETIONS, body)["param"] == "prompt"

    refused(http, COMPLETIONS, {"prompt": [[5]] * 10**5, "n": 128})
    assert refused(http, COMPLETIONS, {"prompt": [5], "n": 129})["param"] == "n"


def test_s13_a_token_outside_the_vocabulary_is_refused_and_a_neighbour_unharmed(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    outside: list[tuple[str, Any]] = [
        *(("logit_bias", {token: 1.0}) for token in (str(VOCABULARY), "-1", "2147483648", "9" * 30)),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {str(i): 1.0 for i in range(1025)}),
        *((field, [token]) for field in ("stop_token_ids", "prompt") for token in (VOCABULARY, -1, 2**63)),
    ]
    with Canary(client) as canary:
        for field, value in outside:
            assert canary.sings
            error = refused(http, COMPLETIONS, {"prompt": "a", "max_tokens": 2} | {field: value})
            assert error["param"] == field
    assert canary.sang_true()


class Canary:
    """A stream at temperature 0 that runs while the block does, and what it says when it is alone."""

    LENGTH = 600

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client
        self._begun = threading.Event()
        self._alone = self._sing()
        self._begun.clear()
        self._beside: list[int] = []
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> "Canary":
        self._thread.start()
        assert self._begun.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    @property
    def sings(self) -> bool:
        return self._thread.is_alive()

    def sang_true(self) -> bool:
        return len(self._alone) == self.LENGTH and self._beside == self._alone

    def _listen(self) -> None:
        self._beside = self._sing()

    def _sing(self) -> list[int]:
        tokens: list[int] = []
        stream = complete(
            self._client, [9, 8, 7, 6], max_tokens=self.LENGTH, stream=True, return_token_ids=True
        )
        for chunk in stream:
            for choice in chunk.choices:
                tokens += choice.token_ids
            self._begun.set()
        return tokens


def test_r1_nothing_bad_changes_what_a_neighbour_is_told(
    client: openai.OpenAI, http: httpx.Client, url: str, server: ThreadedServer
) -> None:
    rounds = 0
    with Canary(client) as canary:
        while canary.sings or rounds == 0:
            for path, raw in corpus():
                status = http.post(path, content=raw).status_code
                assert status in (200, 400, 404, 429), (path, raw[:200], status)
            hang_up(url)
            rounds += 1
    assert canary.sang_true()
    wait_for(lambda: server.num_running() == 0)


def corpus() -> Iterator[tuple[str, bytes]]:
    """Bodies that are malformed, of the wrong type, out of range, too long, or costly for those beside them."""
    for raw in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 10**5,
        b'{"prompt": NaN}',
        b"null",
        b'{"a": 1e999}',
        b'"\\ud800"',
    ):
        yield COMPLETIONS, raw
    for path, body in SMALLEST.items():
        for change in (
            {"temperature": "hot"},
            {"temperature": -1},
            {"top_p": 0},
            {"n": 10**9},
            {"seed": 2**70},
            {"max_tokens": -5},
            {"stop": [""]},
            {"logit_bias": {str(VOCABULARY): 100}},
            {"model": "../../x"},
            {"tools": [{"type": "function"}]},
            {"prompt": [1] * MAX_MODEL_LEN, "input": "x" * 10**6, "messages": "x"},
            {"prompt": "\ud800", "input": "\ud800", "messages": [{"role": "user", "content": "\ud800"}]},
        ):
            yield path, json.dumps(body | change).encode()
    extreme = {
        "temperature": 100,
        "top_k": 1,
        "presence_penalty": 2,
        "repetition_penalty": 100,
        "n": 8,
        "logprobs": 20,
    }
    yield COMPLETIONS, json.dumps(SMALLEST[COMPLETIONS] | extreme | {"logit_bias": {"5": -100}}).encode()


def hang_up(url: str) -> None:
    """Ask for much, and leave: while it is sent, before it begins, and while it runs."""
    body = json.dumps({"prompt": [5, 9], "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
    start = head("POST", COMPLETIONS, f"content-length: {len(body)}")
    for sent, wait in ((start + body[:10], False), (start + body, False), (start + body, True)):
        with connected(url) as connection:
            connection.sendall(sent)
            if wait:
                connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
