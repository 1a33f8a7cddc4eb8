"""A response as typed events, from `response.created` to how it ended."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from core.engine.answers import Answers
from server.openai.choices import News, Reader
from server.openai.responses.writing import Writing, message_item, text_part
from server.sse import typed_event

Fields = dict[str, Any]


async def events(
    writing: Writing, answers: Answers, keep: Callable[[Writing], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """The events of a response that `answers` make. It is kept before its last event is sent.

    A client that has hung up gets no last event; what it cancelled is kept all the same.
    """
    events, reader = _Numbered(), Reader()
    yield events.response("created", writing) + events.response("in_progress", writing)
    try:
        async for output in answers:
            if (news := reader.news(writing.take(output))) is not None:
                yield b"".join(map(events.numbered, _said(writing, news)))
        writing.end()
    except Exception as error:
        writing.fail(error)
    await keep(writing)
    if writing.status != "cancelled":
        yield events.response(writing.status, writing)


class _Numbered:
    """Events in the order in which they are sent."""

    def __init__(self) -> None:
        self._next = 0

    def numbered(self, fields: Fields) -> bytes:
        numbered = fields | {"sequence_number": self._next}
        self._next += 1
        return typed_event(numbered)

    def response(self, what: str, writing: Writing) -> bytes:
        return self.numbered({"type": f"response.{what}", "response": writing.response()})


def _said(writing: Writing, news: News) -> Iterator[Fields]:
    """What this news adds: the message and its text begin, grow and end."""
    item: Fields = {"output_index": 0}
    part = item | {"item_id": writing.item_id, "content_index": 0}
    if news.first:
        begun = message_item(writing.item_id, "in_progress", [])
        yield {"type": "response.output_item.added", "item": begun} | item
        yield {"type": "response.content_part.added", "part": text_part("", [])} | part
    logprobs = writing.logprobs(news.logprobs)
    if news.text or logprobs:
        yield {"type": "response.output_text.delta", "delta": news.text, "logprobs": logprobs} | part
    if news.finish_reason is not None:
        whole = writing.part()
        done = {"text": whole["text"], "logprobs": whole["logprobs"]}
        yield {"type": "response.output_text.done"} | done | part
        yield {"type": "response.content_part.done", "part": whole} | part
        yield {"type": "response.output_item.done", "item": writing.item()} | item
