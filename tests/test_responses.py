"""/v1/responses over a real socket, with OpenAI's own client, in front of a real engine."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import CHAT, LONG, NAME, ThreadedServer, chat, wait_for

pytest_plugins = ("server_fixtures",)

QUESTION = CHAT[0]["content"]


def asked(**more: Any) -> dict[str, Any]:
    extra = {"ignore_eos": True} | more.pop("extra_body", {})
    given = {"model": NAME, "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    return given | {"extra_body": extra} | more


def respond(client: openai.OpenAI, **more: Any) -> Any:
    return client.responses.create(**asked(**more))


def in_background(client: openai.OpenAI, **more: Any) -> Any:
    return respond(client, background=True, **more)


def without_ids(response: Any) -> dict[str, Any]:
    dumped = response.model_dump(exclude={"id", "created_at", "completed_at", "output_text"})
    for item in dumped["output"]:
        del item["id"]
        for part in item["content"]:
            part.pop("parsed", None)  # which the client adds
    return dumped


def typed_events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, each with a name that is its type."""
    for block in response.read().decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        yield event


def test_it_is_the_answer_of_the_chat_endpoint(client: openai.OpenAI) -> None:
    response = respond(client, instructions="Be brief.")
    same = chat(client, messages=[{"role": "system", "content": "Be brief."}, *CHAT])

    assert response.output_text == same.choices[0].message.content
    assert (response.object, response.model, response.instructions) == ("response", NAME, "Be brief.")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (same.usage.prompt_tokens, 24)
    assert response.usage.total_tokens == same.usage.total_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == 0


def test_an_answer_that_was_cut_off_is_incomplete_and_says_why(client: openai.OpenAI) -> None:
    cut = respond(client)
    free = respond(client, extra_body={"ignore_eos": False, "logit_bias": {"2": 100}})

    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (cut.output[0].status, cut.completed_at) == ("incomplete", None)
    assert (free.status, free.incomplete_details, free.output[0].status) == ("completed", None, "completed")
    assert free.completed_at >= free.created_at


def test_a_streamed_response_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    ending = {"logit_bias": {"2": 100}, "min_tokens": 12, "ignore_eos": False}
    whole = respond(client, extra_body=ending | {"cache_salt": "a"})
    with client.responses.stream(**asked(extra_body=ending | {"cache_salt": "b"})) as stream:
        seen = list(stream)
        final = stream.get_final_response()

    deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert whole.status == "completed"
    assert without_ids(final) == without_ids(whole)
    assert "".join(deltas) == final.output_text == whole.output_text
    assert len(deltas) > 2


def test_the_events_come_in_order_and_are_numbered(http: httpx.Client) -> None:
    body = {"input": QUESTION, "max_output_tokens": 6, "ignore_eos": True, "temperature": 0, "stream": True}
    with http.stream("POST", "/v1/responses", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        seen = list(typed_events(response))

    names = [event["type"].removeprefix("response.") for event in seen]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert seen[0]["response"]["status"] == "in_progress" and seen[0]["response"]["output"] == []
    assert seen[-1]["response"]["output"] == [seen[-2]["item"]]
    assert seen[-3]["part"]["text"] == seen[-4]["text"] == "".join(e["delta"] for e in seen[4:-4])


def test_logprobs_come_when_they_are_included(client: openai.OpenAI) -> None:
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (part,) = respond(client, **wanted).output[0].content
    same = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    with client.responses.stream(**asked(**wanted)) as stream:
        streamed = [p for e in stream if e.type == "response.output_text.delta" for p in e.logprobs]

    assert [p.token for p in part.logprobs] == [p.token for p in same] == [p.token for p in streamed]
    assert [len(p.top_logprobs) for p in part.logprobs] == [2] * 24
    assert [p.logprob for p in part.logprobs] == pytest.approx([p.logprob for p in same], abs=1e-4)
    assert respond(client).output[0].content[0].logprobs == []


def test_a_response_is_found_again_until_it_is_deleted(client: openai.OpenAI) -> None:
    response = respond(client, metadata={"topic": "tides"})

    assert client.responses.retrieve(response.id) == response
    assert response.metadata == {"topic": "tides"}
    client.responses.delete(response.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(response.id)
        assert response.id in caught.value.message


def test_what_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    response = respond(client, store=False)

    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        respond(client, previous_response_id=response.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_stream_is_stored_as_it_ended(client: openai.OpenAI) -> None:
    *_, last = respond(client, stream=True)

    assert client.responses.retrieve(last.response.id) == last.response


def test_a_conversation_goes_on_where_the_previous_response_ended(client: openai.OpenAI) -> None:
    first = respond(client, instructions="Be brief.")
    second = respond(client, previous_response_id=first.id, input="Go on.")
    client.responses.delete(first.id)  # what continues it has all that it needs
    third = respond(client, previous_response_id=second.id, input="And then?")

    messages = [
        *CHAT,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on."},
    ]
    assert second.output_text == chat(client, messages=messages).choices[0].message.content
    messages += [
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "And then?"},
    ]
    assert third.output_text == chat(client, messages=messages).choices[0].message.content
    assert third.previous_response_id == second.id


def test_items_say_the_same_as_the_messages_of_a_chat(client: openai.OpenAI) -> None:
    first = respond(client)
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *first.output,
        {"role": "user", "content": "Go on."},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        *CHAT,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on."},
    ]

    assert (
        respond(client, input=items).output_text == chat(client, messages=messages).choices[0].message.content
    )


def test_the_items_of_the_input_are_listed_in_pages(client: openai.OpenAI) -> None:
    first = respond(client)
    second = respond(client, previous_response_id=first.id, input="Go on.")
    listed = client.responses.input_items.list(second.id, limit=2, order="asc")
    latest = client.responses.input_items.list(second.id).data

    assert listed.has_more and [item.role for item in listed.data] == ["user", "assistant"]
    assert [item.content[0].text for item in listed] == [QUESTION, first.output_text, "Go on."]
    assert [item.id for item in latest] == [item.id for item in reversed(list(listed))]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.input_items.list(second.id, after="msg_nobody")
    assert caught.value.param == "after"


def test_a_background_response_is_polled_until_it_is_finished(client: openai.OpenAI) -> None:
    begun = in_background(client)
    wait_for(lambda: client.responses.retrieve(begun.id).status not in ("queued", "in_progress"))
    finished = client.responses.retrieve(begun.id)

    assert (begun.status, begun.output, begun.usage) == ("queued", [], None)
    assert finished.output_text == respond(client).output_text
    assert client.responses.cancel(begun.id) == finished  # too late to change anything


def test_a_background_response_can_be_cancelled(client: openai.OpenAI, server: ThreadedServer) -> None:
    begun = in_background(client, max_output_tokens=LONG["max_tokens"])
    wait_for(lambda: client.responses.retrieve(begun.id).status == "in_progress")
    with pytest.raises(openai.BadRequestError, match="in_progress"):
        respond(client, previous_response_id=begun.id)

    cancelled = client.responses.cancel(begun.id)

    assert cancelled.status == "cancelled"
    assert client.responses.cancel(begun.id) == client.responses.retrieve(begun.id) == cancelled
    wait_for(lambda: server.num_running() == 0)


def test_only_a_background_response_can_be_cancelled(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(respond(client).id)


def test_deleting_a_background_response_ends_it(client: openai.OpenAI, server: ThreadedServer) -> None:
    begun = in_background(client, max_output_tokens=LONG["max_tokens"])
    wait_for(lambda: server.num_running() == 1)

    client.responses.delete(begun.id)

    wait_for(lambda: server.num_running() == 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)


def test_hanging_up_cancels_and_says_so_afterwards(client: openai.OpenAI, server: ThreadedServer) -> None:
    stream = respond(client, stream=True, max_output_tokens=LONG["max_tokens"])
    response_id = next(iter(stream)).response.id
    wait_for(lambda: server.num_running() == 1)

    stream.close()

    wait_for(lambda: server.num_running() == 0)
    wait_for(lambda: _is_kept(client, response_id))
    assert client.responses.retrieve(response_id).status == "cancelled"


def test_a_stream_that_fails_says_so_and_is_kept(client: openai.OpenAI, server: ThreadedServer) -> None:
    async def fail() -> None:
        server.engine.fail_unfinished(RuntimeError("secret"))

    stream = iter(respond(client, stream=True, max_output_tokens=LONG["max_tokens"]))
    next(event for event in stream if event.type == "response.output_text.delta")
    server.call(fail())
    *_, last = stream

    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.code == "server_error" and "secret" not in last.response.error.message
    assert last.response.output_text and last.response.output[0].status == "incomplete"
    assert client.responses.retrieve(last.response.id) == last.response


def _is_kept(client: openai.OpenAI, response_id: str) -> bool:
    try:
        return bool(client.responses.retrieve(response_id))
    except openai.NotFoundError:
        return False


def test_ids_are_not_to_be_guessed(client: openai.OpenAI) -> None:
    ids = [respond(client, max_output_tokens=1).id for _ in range(3)]

    assert len(set(ids)) == 3
    assert all(len(response_id) >= 40 for response_id in ids)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["everything"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"background": True, "store": False}, "store"),
        ({"background": True, "stream": True}, "stream"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://[::1]"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": "the tides " * 5000}, "input"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/responses", json={"input": "a"} | body)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert param in response.json()["error"]["message"] or param == "input"


@pytest.mark.parametrize("query", ["stream=true", "starting_after=5", "include[]=everything"])
def test_a_query_is_honoured_or_refused_by_name(
    client: openai.OpenAI, http: httpx.Client, query: str
) -> None:
    path = f"/v1/responses/{respond(client, max_output_tokens=1).id}"
    allowed = "include[]=message.output_text.logprobs&stream=false"

    assert http.get(f"{path}?{allowed}").status_code == 200
    refused = http.get(f"{path}?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(query.split("=")[0].removesuffix("[]"))


def test_what_asks_for_nothing_is_served(client: openai.OpenAI) -> None:
    response = respond(
        client,
        max_output_tokens=1,
        tools=[],
        reasoning={"effort": "none", "summary": None},
        top_logprobs=0,
        prompt_cache_options={"mode": "explicit"},
        text={"format": {"type": "text"}},
        include=["reasoning.encrypted_content"],
        truncation="disabled",
        service_tier="auto",
        user="someone",
    )

    assert response.status == "incomplete"
    assert abs(response.created_at - time.time()) < 60


def test_a_phase_and_marks_of_the_cache_change_nothing(client: openai.OpenAI) -> None:
    def told(marks: dict[str, Any], phase: dict[str, Any]) -> str:
        part = {"type": "input_text", "text": "Tell me about the tides."} | marks
        answer = {"role": "assistant", "content": "They come and go."} | phase
        return respond(client, input=[{"role": "user", "content": [part]}, answer]).output_text

    marked = told({"prompt_cache_breakpoint": {"mode": "explicit"}}, {"phase": "final_answer"})

    assert marked == told({}, {})
