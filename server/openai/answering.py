"""From submitted requests to a response: streamed or whole, through the endpoint's own rendering."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.responses import Response

from core.engine.answers import Answers
from core.outputs import CompletionOutput, RequestOutput
from server.answering import checked, collected
from server.errors import JSON
from server.openai.bodies import GenerationBody, StreamOptions
from server.openai.choices import News, Reader, Usage
from server.sse import DONE, EventStream, event


class Rendering(Protocol):
    """One endpoint's shapes."""

    counts_answers: bool

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        """id, object, created and model."""
        ...

    def chosen(self, output: RequestOutput) -> list[CompletionOutput]:
        """The finished answers that are sent."""
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


async def respond(answers: Answers, rendering: Rendering, body: GenerationBody) -> Response:
    """The response to a generating request. Raises RequestFailed, EngineDead … unless it is streamed."""
    if body.stream:
        return EventStream(answers, _events(answers, rendering, body.stream_options or StreamOptions()))
    finished = await collected(answers)
    usage = Usage()
    choices: list[dict[str, Any]] = []
    for output in finished:
        usage.add(output)
        choices += [
            rendering.choice(output, news) for a in rendering.chosen(output) if (news := Reader().news(a))
        ]
    content = rendering.envelope(streamed=False) | {"choices": choices} | rendering.extras(finished)
    content["usage"] = usage.as_dict(count_answers=rendering.counts_answers)
    return JSON(content)


async def _events(answers: Answers, rendering: Rendering, options: StreamOptions) -> AsyncIterator[bytes]:
    """One block of events per look at the answers; then usage, if it is wanted; then [DONE]."""
    envelope = rendering.envelope(streamed=True)
    usage = Usage()
    more: dict[str, Any] = {"usage": None} if options.include_usage else {}
    readers: dict[tuple[str, int], Reader] = {}
    async for output in answers:
        usage.add(checked(output))
        choices: list[dict[str, Any]] = []
        for answer in output.outputs:
            reader = readers.setdefault((output.request_id, answer.index), Reader())
            if (news := reader.news(answer)) is not None:
                choices += rendering.chunks(output, news)
        if choices:
            if options.continuous_usage_stats:
                more = {"usage": usage.as_dict(count_answers=rendering.counts_answers)}
            yield b"".join(event(envelope | {"choices": [choice]} | more) for choice in choices)
    if options.include_usage:
        counted = usage.as_dict(count_answers=rendering.counts_answers)
        yield event(envelope | {"choices": [], "usage": counted})
    yield DONE
