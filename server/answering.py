"""From submitted requests to a response: streamed or whole, through the endpoint's own rendering."""

import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from core.engine.answers import Answers
from core.outputs import RequestOutput
from server.choices import News, Reader, Usage
from server.errors import JSON, RequestFailed
from server.openai_types import GenerationBody
from server.sse import DONE, EventStream, event, hanging_up_ends

log = logging.getLogger("server")

CLIENT_CLOSED_REQUEST = 499


class Rendering(Protocol):
    """One endpoint's shapes. `response_id` goes out as x-request-id, too."""

    response_id: str
    counts_answers: bool

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        """id, object, created and model."""
        ...

    def chunks(self, output: RequestOutput, news: News) -> list[dict[str, Any]]:
        """The choices to stream for this news, one per chunk."""
        ...

    def choice(self, output: RequestOutput, whole: News) -> dict[str, Any]:
        """A finished answer."""
        ...

    def extras(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        """More top-level fields of a whole response."""
        ...


async def respond(request: Request, answers: Answers, rendering: Rendering, body: GenerationBody) -> Response:
    """The response to a generating request. Raises RequestFailed, EngineDead … unless it is streamed."""
    headers = {"x-request-id": rendering.response_id}
    if body.stream:
        return EventStream(answers, _events(answers, rendering, body.include_usage), headers)
    finished = await collected(request, answers)
    if finished is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    usage = Usage()
    choices: list[dict[str, Any]] = []
    for output in finished:
        usage.add(output)
        choices += [rendering.choice(output, news) for a in output.outputs if (news := Reader().news(a))]
    content = rendering.envelope(streamed=False) | {"choices": choices} | rendering.extras(finished)
    content["usage"] = usage.as_dict(count_answers=rendering.counts_answers)
    return JSON(content, headers=headers)


async def collected(request: Request, answers: Answers) -> list[RequestOutput] | None:
    """The finished outputs in the order of their requests; None when the client has hung up.

    Raises RequestFailed, EngineDead.
    """
    async with hanging_up_ends(answers, request.receive):
        finished = [output async for output in answers if _checked(output).finished]
    place = {request_id: i for i, request_id in enumerate(answers.request_ids)}
    return sorted(finished, key=lambda output: place[output.request_id]) if answers.complete else None


async def _events(answers: Answers, rendering: Rendering, include_usage: bool) -> AsyncIterator[bytes]:
    """One block of events per look at the answers; then usage, if it is wanted; then [DONE]."""
    envelope = rendering.envelope(streamed=True)
    usage = Usage()
    more = {"usage": None} if include_usage else {}
    readers: dict[tuple[str, int], Reader] = {}
    async for output in answers:
        usage.add(_checked(output))
        choices: list[dict[str, Any]] = []
        for answer in output.outputs:
            reader = readers.setdefault((output.request_id, answer.index), Reader())
            if (news := reader.news(answer)) is not None:
                choices += rendering.chunks(output, news)
        if choices:
            yield b"".join(event(envelope | {"choices": [choice]} | more) for choice in choices)
    if include_usage:
        counted = usage.as_dict(count_answers=rendering.counts_answers)
        yield event(envelope | {"choices": [], "usage": counted})
    yield DONE


def _checked(output: RequestOutput) -> RequestOutput:
    if output.error is not None:
        log.error("request %s failed: %s", output.request_id, output.error)
        raise RequestFailed("this request could not be computed; other requests are not affected")
    return output
