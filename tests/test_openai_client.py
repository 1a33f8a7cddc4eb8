"""OpenAI's own client against a live server: both kinds, raw answers, its error classes, and its retries."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import CHAT, LONG, NAME, ThreadedServer, chat, complete, engine_keywords

from core.config import EngineConfig
from server.app import create_app
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

ASKED: dict[str, Any] = {
    "model": NAME,
    "messages": CHAT,
    "temperature": 0,
    "max_completion_tokens": 12,
    "extra_body": {"ignore_eos": True},
}


def connected(url: str, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{url}/v1", "api_key": "unused", "max_retries": 0} | more)


def test_the_asynchronous_client_gets_what_the_other_gets(client: openai.OpenAI, url: str) -> None:
    async def both() -> tuple[str | None, str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
            whole = await made.chat.completions.create(**ASKED)
            stream = await made.chat.completions.create(**ASKED, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            prompts = [made.completions.create(model=NAME, prompt="Once", max_tokens=3) for _ in range(8)]
            texts = {answer.choices[0].finish_reason for answer in await asyncio.gather(*prompts)}
            return whole.choices[0].message.content, "".join(parts), *texts

    text = client.chat.completions.create(**ASKED).choices[0].message.content

    assert asyncio.run(both()) == (text, text, "length")


def test_the_clients_accumulator_takes_our_stream(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(**ASKED).choices[0].message.content or ""
    stop = free[8:10]  # an answer that is cut off by its length is an error to the accumulator
    with client.chat.completions.stream(
        **ASKED, stop=stop, logprobs=True, top_logprobs=2, n=2, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done", "logprobs.content.done"} <= kinds
    assert [choice.message.content for choice in final.choices] == [free[: free.index(stop)]] * 2
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop"]
    lengths = [len(choice.logprobs.content or []) for choice in final.choices if choice.logprobs]
    assert final.usage is not None and final.usage.completion_tokens == sum(lengths) > 0
    assert final.service_tier == "default" and final.system_fingerprint


def test_raw_answers_have_the_headers_that_clients_log(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASKED)
    answer = raw.parse()

    assert raw.status_code == 200 and raw.retries_taken == 0
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"] and answer._request_id == raw.headers["x-request-id"]
    with client.completions.with_streaming_response.create(
        model=NAME, prompt="a", max_tokens=2, stream=True
    ) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert list(streamed.iter_lines())[-2] == "data: [DONE]"


def test_a_stream_may_be_left_early(client: openai.OpenAI, server: ThreadedServer) -> None:
    with complete(client, stream=True, **LONG) as stream:
        next(iter(stream))

    assert complete(client).choices[0].finish_reason == "length"


@pytest.fixture(scope="module")
def locked(server: ThreadedServer) -> Iterator[openai.OpenAI]:
    settings = ServerSettings(port=0, served_model_name=NAME, api_key="sesame", max_body_bytes=4096)
    with connected(server.open(settings), api_key="sesame") as made:
        yield made


@pytest.mark.parametrize(
    ("ask", "kind", "status", "code"),
    [
        (lambda c: complete(c, temperature=-1), openai.BadRequestError, 400, "invalid_value"),
        (lambda c: complete(c, [7] * 9000), openai.APIStatusError, 413, "request_too_large"),
        (
            lambda c: complete(c.with_options(api_key="wrong")),
            openai.AuthenticationError,
            401,
            "invalid_api_key",
        ),
        (lambda c: c.models.retrieve("gpt-7"), openai.NotFoundError, 404, "model_not_found"),
        (lambda c: c.files.list(), openai.NotFoundError, 404, "not_found"),
        (lambda c: c.models.delete(NAME), openai.APIStatusError, 405, "method_not_allowed"),
        (
            lambda c: c.chat.completions.create(**ASKED, tools=[{}]),
            openai.BadRequestError,
            400,
            "invalid_value",
        ),
    ],
)
def test_errors_arrive_as_the_clients_classes(
    locked: openai.OpenAI,
    ask: Callable[[openai.OpenAI], Any],
    kind: type[openai.APIError],
    status: int,
    code: str,
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(locked)

    error = caught.value
    assert isinstance(error, kind)
    assert (error.status_code, error.code) == (status, code)
    assert isinstance(error.body, dict) and error.body["message"] and error.type


def hooked(url: str, on_answer: Callable[[httpx.Response], None], **more: Any) -> openai.OpenAI:
    """A client that tells of every response."""
    http = httpx.Client(event_hooks={"response": [on_answer]}, timeout=60)
    return connected(url, http_client=http, **more)


@pytest.fixture(scope="module")
def narrow(tiny_model: Callable[..., Path]) -> Iterator[str]:
    """A server that takes one request at a time."""
    model = tiny_model("llama", max_position_embeddings=8192)
    with ThreadedServer(EngineConfig(**engine_keywords(model)), max_queued=1) as running:
        yield running.open(ServerSettings(port=0, served_model_name=NAME))


def test_the_client_waits_out_a_full_queue_by_itself(narrow: str) -> None:
    statuses: list[int] = []
    with connected(narrow) as first:
        occupied = complete(first, stream=True, **LONG)
        next(occupied)

        def note(response: httpx.Response) -> None:
            statuses.append(response.status_code)
            occupied.close()

        with pytest.raises(openai.RateLimitError) as caught:
            complete(first)
        with hooked(narrow, note, max_retries=5) as patient:
            answer = patient.chat.completions.with_raw_response.create(**ASKED)

    assert caught.value.code == "queue_full" and float(caught.value.response.headers["retry-after"]) > 0
    assert statuses[0] == 429 and statuses[-1] == 200
    assert answer.retries_taken == len(statuses) - 1
    assert answer.parse().choices[0].finish_reason == "length"


def test_the_client_waits_out_a_server_that_cannot_answer_now(server: ThreadedServer) -> None:
    settings = ServerSettings(port=0, served_model_name=NAME)
    app = create_app(server.engine, settings)
    url = server.open(settings, app)
    app.state.shared.draining = True
    statuses: list[int] = []

    def note(response: httpx.Response) -> None:
        statuses.append(response.status_code)
        app.state.shared.draining = False

    with connected(url) as hasty, pytest.raises(openai.InternalServerError) as caught:
        complete(hasty)
    with hooked(url, note, max_retries=2) as patient:
        assert chat(patient).choices[0].finish_reason == "length"

    assert (caught.value.status_code, caught.value.code) == (503, "draining")
    assert statuses == [503, 200]


def test_what_cannot_help_is_not_sent_again(url: str) -> None:
    statuses: list[int] = []
    with (
        hooked(url, lambda response: statuses.append(response.status_code), max_retries=3) as patient,
        pytest.raises(openai.BadRequestError),
    ):
        complete(patient, temperature=-1)

    assert statuses == [400]


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"session": "5"}, "user": "someone", "safety_identifier": "someone"},
        {
            "prompt_cache_key": "a",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"mode": "explicit"},
        },
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False, "functions": []},
        {"reasoning_effort": "none", "verbosity": "medium", "service_tier": "auto", "store": False},
        {"logprobs": False, "top_logprobs": 0},
        {"response_format": {"type": "text", "json_schema": None}},
    ],
)
def test_what_clients_always_send_is_served(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    body = ASKED | {"extra_body": ASKED["extra_body"] | fields}

    answer = client.chat.completions.create(**body)

    plain = client.chat.completions.create(**ASKED)
    assert answer.choices[0].message.content == plain.choices[0].message.content


def test_answers_and_marked_parts_are_taken_back(client: openai.OpenAI, http: httpx.Client) -> None:
    part = {"type": "text", "text": "Tell me about the tides."}
    marks = {"cache_control": {"type": "ephemeral"}, "prompt_cache_breakpoint": {"mode": "explicit"}}
    said = client.chat.completions.create(**ASKED).choices[0].message.model_dump()

    def told(part: dict[str, Any], answer: dict[str, Any]) -> Any:
        messages = [{"role": "user", "content": [part]}, answer, {"role": "user", "content": "Go on."}]
        return http.post(
            "/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "temperature": 0}
        )

    plain = told(part, {"role": "assistant", "content": said["content"]})
    again = told(part | marks, said | {"annotations": [], "tool_calls": []})

    assert again.status_code == 200, again.text
    assert again.json()["choices"][0]["message"] == plain.json()["choices"][0]["message"]
    refused = told(part, said | {"tool_calls": [{"type": "function", "id": "a", "function": {"name": "f"}}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[1].tool_calls")


def test_a_model_with_a_slash_in_its_name_is_found(server: ThreadedServer) -> None:
    url = server.open(ServerSettings(port=0, served_model_name="org/tiny"))
    with connected(url) as client:
        (listed,) = client.models.list().data
        found = client.models.retrieve("org/tiny")
        answer = client.chat.completions.create(**ASKED | {"model": "org/tiny"})

    assert listed.id == found.id == answer.model == "org/tiny"
