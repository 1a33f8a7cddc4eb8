"""What the server refuses, and how it says so."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import CHAT, MAX_MODEL_LEN, NAME, ThreadedServer, chat, complete, refused

pytest_plugins = ("server_fixtures",)


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-7", messages=CHAT)

    assert caught.value.code == "model_not_found"
    assert caught.value.body["param"] == "model"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_k", 1.5),
        ("min_p", 2),
        ("n", 0),
        ("n", 10**9),
        ("n", "2"),
        ("seed", 2**63),
        ("max_tokens", -1),
        ("max_tokens", 2**63),
        ("min_tokens", True),
        ("stop", [""]),
        ("stop", 5),
        ("stop", ["a"] * 17),
        ("stop_token_ids", [10**6]),
        ("logit_bias", {"999999": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"5": 1000}),
        ("presence_penalty", 3),
        ("frequency_penalty", []),
        ("repetition_penalty", 0),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("ignore_eos", "yes"),
        ("priority", 0.5),
        ("priority", 2**40),
        ("priority", 1),
        ("cache_salt", "x" * 300),
        ("stream", "true"),
        ("best_of", 0),
        ("best_of", 129),
        ("echo", 1),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", 5),
        ("prompt", ["a", [1]]),
        ("prompt", [1, -1]),
        ("prompt", [1, 10**6]),
        ("prompt", [True]),
    ],
)
def test_a_bad_value_is_refused_with_the_parameters_name(http: httpx.Client, field: str, value: Any) -> None:
    error = refused(http, "/v1/completions", {"model": NAME, "prompt": "a", "max_tokens": 2} | {field: value})

    assert error["param"] == field
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "field_and_value",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_object"}},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"modalities": ["text", "audio"]},
        {"suffix": "the end"},
        {"store": True},
        {"chat_template": "{{ messages }}"},
        {"best_off": 1},
        {"max_completion_tokens": 0},
        {"top_logprobs": 2},
        {"stream_options": {"include_usage": True}},
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, field_and_value: dict[str, Any]
) -> None:
    (field,) = field_and_value

    error = refused(http, "/v1/chat/completions", {"model": NAME, "messages": CHAT} | field_and_value)

    assert field in error["message"] or error["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "wizard", "content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://[::1]"}}]}],
            "messages[0].content[0].type",
        ),
        ([{"role": "tool", "content": "a", "tool_call_id": "1"}], "messages[0].role"),
    ],
)
def test_a_bad_message_is_refused_with_its_place(http: httpx.Client, messages: Any, param: str) -> None:
    assert refused(http, "/v1/chat/completions", {"messages": messages})["param"] == param


def test_values_that_ask_for_nothing_are_accepted(http: httpx.Client) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "user": "u1",
        "store": False,
    }
    response = http.post(
        "/v1/chat/completions", json={"messages": CHAT, "max_tokens": 1, "seed": None} | neutral
    )

    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_format": {"type": "json_object"}}, 'send {"type":"text"}'),
        ({"use_beam_search": True}, "send false"),
        ({"messages": []}, "at least 1 item after validation, not 0"),
    ],
)
def test_what_may_be_sent_instead_is_said_in_json_and_once(
    http: httpx.Client, body: dict[str, Any], words: str
) -> None:
    assert refused(http, "/v1/chat/completions", {"messages": CHAT} | body)["message"].endswith(words)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/v1/v1/completions",
            "nothing is at '/v1/v1/completions' here; GET /openapi.json lists every route",
        ),
        ("/v1/completions", "GET is not accepted at '/v1/completions'; POST is"),
    ],
)
def test_who_asks_at_a_wrong_place_learns_which_and_where_to_look(
    http: httpx.Client, path: str, message: str
) -> None:
    assert http.get(path).json()["error"]["message"] == message


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    for ask in (
        lambda: complete(client, [7] * MAX_MODEL_LEN),
        lambda: chat(client, messages=[{"role": "user", "content": "x" * MAX_MODEL_LEN}]),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.code == "context_length_exceeded"
        assert f"{MAX_MODEL_LEN:,}" in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "a", "metadata": ' + b'{"a":' * 70 + b"1" + b"}" * 71,
    ],
)
def test_a_body_that_is_no_proper_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/completions", content=body)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not(http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(9):
            yield b" " * 2**20

    declared = http.post("/v1/completions", content=b" " * (9 * 2**20))
    with httpx.Client(base_url=http.base_url) as another:
        chunked = another.post("/v1/completions", content=pieces())

    for response in (declared, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_unknown_routes_and_methods_get_the_error_object_too(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"
    assert http.get("/v1/completions").status_code == 405


def test_no_error_tells_of_paths_or_code(http: httpx.Client, server: ThreadedServer) -> None:
    bodies = [
        b"{",
        b'{"prompt": "a", "n": {}}',
        b'{"prompt": "a", "model": "../../etc/passwd"}',
        b'{"prompt": 1}',
    ]
    folder = server.engine.info.model_path

    for body in bodies:
        text = http.post("/v1/completions", content=body).text
        assert "Traceback" not in text and ".py" not in text and folder not in text
