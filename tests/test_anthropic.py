"""Anthropic's API over a real socket, with Anthropic's own client, in front of a real engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from live_server import CHAT, LONG, MAX_MODEL_LEN, NAME, ThreadedServer, chat, wait_for

from core.errors import RequestError
from core.text.chat import ChatTemplate
from core.text.tokenizer import load_tokenizer
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

SAMPLING = ("temperature", "top_p", "top_k", "ignore_eos", "logit_bias", "cache_salt", "min_tokens")
"""What goes into `extra_body`: this client names only what its newest models take."""


@pytest.fixture(scope="session")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0) as made:
        yield made


def asked(**more: Any) -> dict[str, Any]:
    given = {"model": NAME, "max_tokens": 24, "messages": CHAT, "temperature": 0, "ignore_eos": True} | more
    extra = {name: given.pop(name) for name in SAMPLING if name in given}
    return given | {"extra_body": extra}


def say(claude: anthropic.Anthropic, **more: Any) -> Any:
    return claude.messages.create(**asked(**more))


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content)


def test_it_is_the_answer_of_the_chat_and_responses_endpoints(
    claude: anthropic.Anthropic, client: openai.OpenAI
) -> None:
    messages = [*CHAT, {"role": "assistant", "content": "They rise."}, {"role": "user", "content": "And?"}]
    message = say(claude, system="Be brief.", messages=messages)
    same = chat(client, messages=[{"role": "system", "content": "Be brief."}, *messages])
    response = client.responses.create(
        model=NAME,
        instructions="Be brief.",
        input=messages,
        temperature=0,
        max_output_tokens=24,
        extra_body={"ignore_eos": True},
    )

    assert text_of(message) == same.choices[0].message.content == response.output_text
    assert (message.type, message.role, message.model) == ("message", "assistant", NAME)
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.output_tokens == 24
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == same.usage.prompt_tokens


def test_a_streamed_message_is_the_whole_one_in_pieces(claude: anthropic.Anthropic) -> None:
    whole = say(claude, cache_salt="whole")
    with claude.messages.stream(**asked(cache_salt="streamed")) as stream:
        seen = list(stream)
        final = stream.get_final_message()

    assert anthropic.types.Message.model_validate(final.to_dict() | {"id": whole.id}) == whole
    assert "".join(event.text for event in seen if event.type == "text") == text_of(whole)
    assert sum(event.type == "text" for event in seen) > 2


def test_the_events_come_in_order(http: httpx.Client) -> None:
    body = {"messages": CHAT, "max_tokens": 6, "ignore_eos": True, "temperature": 0, "stream": True}
    with http.stream("POST", "/v1/messages", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        blocks = response.read().decode().removesuffix("\n\n").split("\n\n")
    seen = [
        (block.split("\n")[0], json.loads(block.split("\n")[1].removeprefix("data: "))) for block in blocks
    ]

    assert all(name == f"event: {event['type']}" for name, event in seen)
    names = [event["type"] for _, event in seen]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert seen[0][1]["message"]["usage"]["output_tokens"] == 0
    assert seen[-2][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert seen[-2][1]["usage"]["output_tokens"] == 6


def test_an_answer_without_text_has_no_content(claude: anthropic.Anthropic) -> None:
    ended = {"ignore_eos": False, "logit_bias": {"2": 100}}
    with claude.messages.stream(**asked(**ended)) as stream:
        streamed = stream.get_final_message()

    for message in (say(claude, **ended), streamed):
        assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "end_turn", 1)


def test_tokens_are_counted_as_a_message_counts_them(claude: anthropic.Anthropic) -> None:
    conversation = {"model": NAME, "system": "Be brief.", "messages": CHAT}
    counted = claude.messages.count_tokens(**conversation)
    first, second = (say(claude, cache_salt="count", **conversation).usage for _ in range(2))

    assert first.input_tokens == counted.input_tokens
    assert first.cache_read_input_tokens == first.cache_creation_input_tokens == 0
    assert second.input_tokens + second.cache_read_input_tokens == counted.input_tokens
    longer = claude.messages.count_tokens(model=NAME, messages=[{"role": "user", "content": "tides " * 4000}])
    assert longer.input_tokens > MAX_MODEL_LEN


def test_a_stop_sequence_ends_the_answer_and_is_named(claude: anthropic.Anthropic) -> None:
    free = text_of(say(claude, max_tokens=48))
    stop = free[20:24]
    ended = say(claude, max_tokens=48, stop_sequences=["never said", stop])
    with claude.messages.stream(**asked(max_tokens=48, stop_sequences=[stop])) as stream:
        streamed = stream.get_final_message()

    for message in (ended, streamed):
        assert text_of(message) == free[: free.index(stop)]
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


def test_the_end_of_the_context_is_told_from_max_tokens(claude: anthropic.Anthropic) -> None:
    long = [{"role": "user", "content": "x" * (MAX_MODEL_LEN - 60)}]

    assert say(claude, messages=long, max_tokens=1000).stop_reason == "model_context_window_exceeded"


def test_what_the_assistant_has_begun_is_continued(
    claude: anthropic.Anthropic, client: openai.OpenAI
) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "The tides are"}]
    message = say(claude, messages=begun)
    same = client.chat.completions.create(
        model=NAME,
        messages=begun,
        temperature=0,
        max_completion_tokens=24,
        extra_body={"ignore_eos": True, "continue_final_message": True},
    )
    counts = [
        claude.messages.count_tokens(model=NAME, messages=turns).input_tokens for turns in (CHAT, begun)
    ]

    assert text_of(message) == same.choices[0].message.content != text_of(say(claude))
    assert 0 < counts[1] - counts[0] <= len("The tides are")


@pytest.fixture
def templates(tiny_model: Callable[..., Path]) -> Callable[[str], Any]:
    """How a template, given as its source, encodes a conversation whose last message stays open, as text again."""
    tokenizer = load_tokenizer(tiny_model("llama"))

    def continued(source: str, *messages: dict[str, str]) -> str:
        ids = ChatTemplate(source, {}).encode(
            messages, tokenizer, add_generation_prompt=False, continue_final_message=True
        )
        return tokenizer.decode(ids, skip_special_tokens=False)

    return continued


def test_a_message_stays_open_in_templates_that_trim_and_close(templates: Callable[..., str]) -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>\n{% endfor %}the end"
    user, begun = {"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho </s> "}

    assert templates(source, user, begun) == "<|user|>hi</s>\n<|assistant|>ho </s> "


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{{ messages[0].content }}",
    ],
)
def test_a_template_that_cannot_keep_it_open_is_refused(templates: Callable[..., str], source: str) -> None:
    with pytest.raises(RequestError, match="cannot be continued"):
        templates(source, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})


def test_blocks_turns_of_the_same_role_and_answers_sent_back_are_joined(
    claude: anthropic.Anthropic, client: openai.OpenAI
) -> None:
    first = say(claude)
    block = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    answer = say(
        claude,
        system=[block, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": "Tell me"},
            {"role": "user", "content": [{"type": "text", "text": "about the tides."}]},
            first.to_param(),
            {"role": "user", "content": "Go on."},
        ],
    )
    same = chat(
        client,
        messages=[
            {"role": "system", "content": "Be brief.\nBe kind."},
            {"role": "user", "content": "Tell me\nabout the tides."},
            {"role": "assistant", "content": text_of(first)},
            {"role": "user", "content": "Go on."},
        ],
    )

    assert text_of(answer) == same.choices[0].message.content


def test_what_asks_for_nothing_is_served(claude: anthropic.Anthropic) -> None:
    message = claude.beta.messages.create(
        **asked(),
        betas=["context-1m-2025-08-07"],
        tools=[],
        tool_choice={"type": "auto"},
        thinking={"type": "disabled"},
        service_tier="auto",
        metadata={"user_id": "someone"},
        context_management={"edits": []},
    )

    assert message.content[0].text == text_of(say(claude))


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://[::1]/secret"}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "the tides " * 5000}]}, "tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences must"),
        ({"output_config": {"effort": "high"}}, "output_config"),
        ({"n": 2}, "'n'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], named: str
) -> None:
    response = http.post("/v1/messages", json={"messages": CHAT, "max_tokens": 2} | fields)

    assert response.status_code == 400, response.text
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert named in response.json()["error"]["message"]


def test_errors_are_the_clients_own(claude: anthropic.Anthropic, server: ThreadedServer) -> None:
    locked = server.open(ServerSettings(port=0, served_model_name=NAME, api_key="sesame"))

    with pytest.raises(anthropic.BadRequestError) as bad:
        say(claude, temperature=-1)
    with pytest.raises(anthropic.NotFoundError) as unknown:
        say(claude, model="claude-9")
    with (
        anthropic.Anthropic(base_url=locked, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as strange,
    ):
        say(stranger)
    with anthropic.Anthropic(base_url=locked, api_key="sesame", max_retries=0) as friend:
        assert text_of(say(friend)) == text_of(say(claude))

    kinds = [error.value.body["error"]["type"] for error in (bad, unknown, strange)]
    assert kinds == ["invalid_request_error", "not_found_error", "authentication_error"]
    assert bad.value.request_id


def test_hanging_up_cancels(claude: anthropic.Anthropic, server: ThreadedServer) -> None:
    with claude.messages.stream(**asked(max_tokens=LONG["max_tokens"])) as stream:
        next(iter(stream))
        assert server.num_running() == 1

    wait_for(lambda: server.num_running() == 0)


def test_a_stream_that_fails_ends_with_an_error_event(
    server: ThreadedServer, claude: anthropic.Anthropic
) -> None:
    async def fail() -> None:
        server.engine.fail_unfinished(RuntimeError("secret"))

    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        claude.messages.stream(**asked(max_tokens=LONG["max_tokens"])) as stream,
    ):
        next(iter(stream))
        server.call(fail())
        stream.until_done()

    assert caught.value.body["error"]["type"] == "api_error"
    assert "secret" not in str(caught.value)
