"""POST /v1/messages and /v1/messages/count_tokens."""

import asyncio
import uuid

from starlette.requests import Request
from starlette.responses import Response

from core.engine.request import Request as GenerationRequest
from server.answering import collected
from server.anthropic.answers import AnthropicMessage, CountedTokens
from server.anthropic.bodies import ConversationBody, MessagesBody
from server.anthropic.rendering import MessageRendering, events
from server.body import read_body
from server.errors import JSON
from server.fields import called
from server.routes import Routes
from server.sse import EventStream
from server.state import Served, State


def message_routes(state: State) -> Routes:
    routes = Routes()

    @routes.post("/v1/messages", body=MessagesBody, answer=AnthropicMessage, events=True)
    async def create_message(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, MessagesBody)
        served = state.take(body.model)
        rendering = MessageRendering(f"msg_{uuid.uuid4().hex}", served.name, body.max_tokens)
        answers = served.submit(request, [await _generation_request(served, body, rendering.id)])
        if body.stream:
            return EventStream(answers, events(answers, rendering))
        (finished,) = await collected(answers)
        return JSON(rendering.message(finished))

    @routes.post("/v1/messages/count_tokens", body=ConversationBody, answer=CountedTokens)
    async def count_tokens(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, ConversationBody)
        intake = state.take(body.model).engine.intake
        ids = await asyncio.to_thread(intake.chat_ids, body.for_template(), **body.template_arguments)
        return JSON({"input_tokens": len(ids)})

    return routes


async def _generation_request(served: Served, body: MessagesBody, request_id: str) -> GenerationRequest:
    """Raises RequestError naming the field at fault."""
    with called(prompt="messages", stop="stop_sequences"):
        given = body.given_sampling() | {"max_tokens": body.max_tokens, "stop": body.stop_sequences or ()}
        return await served.engine.chat_request(
            body.for_template(),
            served.engine.intake.default_params(**given),
            request_id=request_id,
            priority=body.priority,
            cache_salt=body.cache_salt,
            **body.template_arguments,
        )
