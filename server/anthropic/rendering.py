"""An assistant's message in Anthropic's shape: whole, or as the events that build it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from core.engine.answers import Answers
from core.outputs import CompletionOutput, RequestOutput
from server.answering import checked
from server.anthropic.errors import error_body
from server.errors import describe
from server.openai.choices import News, Reader
from server.sse import typed_event


class MessageRendering:
    """One answer, which is one block of text."""

    def __init__(self, message_id: str, model: str, max_tokens: int) -> None:
        self.id = message_id
        self._model = model
        self._max_tokens = max_tokens

    def message(self, output: RequestOutput) -> dict[str, Any]:
        """The finished answer."""
        (answer,) = output.outputs
        content = [{"type": "text", "text": answer.text}] if answer.text else []
        return self._envelope() | self.ending(answer) | {"content": content, "usage": usage(output)}

    def start(self, output: RequestOutput) -> dict[str, Any]:
        """The message as a stream begins: empty, and the prompt counted."""
        nothing = {"content": [], "stop_reason": None, "stop_sequence": None}
        return self._envelope() | nothing | {"usage": usage(output) | {"output_tokens": 0}}

    def ending(self, answer: CompletionOutput) -> dict[str, str | None]:
        """Why the answer ended. A model may end its turn with any of its tokens, which are nobody's stop sequence."""
        if answer.finish_reason == "length":
            reached = len(answer.token_ids) >= self._max_tokens
            return {
                "stop_reason": "max_tokens" if reached else "model_context_window_exceeded",
                "stop_sequence": None,
            }
        if isinstance(answer.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _envelope(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self._model}


def usage(output: RequestOutput) -> dict[str, int]:
    """Tokens so far. As Anthropic counts, what the prefix cache held is not among `input_tokens`."""
    (answer,) = output.outputs
    return {
        "input_tokens": len(output.prompt_token_ids) - output.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": output.num_cached_tokens,
        "output_tokens": len(answer.token_ids),
    }


async def events(answers: Answers, rendering: MessageRendering) -> AsyncIterator[bytes]:
    """The message from `message_start` to `message_stop`; an error on the way is the last event."""
    reader = Reader()
    try:
        async for output in answers:
            (answer,) = checked(output).outputs
            begun = reader.text > 0
            if (news := reader.news(answer)) is not None:
                yield b"".join(map(typed_event, _events(rendering, output, news, begun=begun)))
    except Exception as error:
        described = describe(error)
        yield typed_event(error_body(described.status, described.message))


def _events(
    rendering: MessageRendering, output: RequestOutput, news: News, *, begun: bool
) -> Iterator[dict[str, Any]]:
    """What this news adds to a stream. `begun` says whether there was text before, and so an open block."""
    if news.first:
        yield {"type": "message_start", "message": rendering.start(output)}
        yield {"type": "ping"}
    if news.text:
        if not begun:
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        delta = {"type": "text_delta", "text": news.text}
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    if news.finish_reason is not None:
        (answer,) = output.outputs
        if answer.text:
            yield {"type": "content_block_stop", "index": 0}
        yield {"type": "message_delta", "delta": rendering.ending(answer), "usage": usage(output)}
        yield {"type": "message_stop"}
