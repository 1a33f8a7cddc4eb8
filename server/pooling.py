"""POST /v1/embeddings, /classify and /pooling."""

import asyncio
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from core.engine.pooling_checks import pooling_of
from core.engine.request import Request as PooledRequest
from core.errors import RequestError
from core.outputs import RequestOutput, floats
from core.pooling_params import PoolingParams
from server.answering import CLIENT_CLOSED_REQUEST, collected
from server.body import read_body
from server.completions import Prompt, listed_prompts
from server.errors import JSON
from server.pooling_types import ClassifyBody, EmbeddingBody, InputBody, PooledBody, PoolingBody
from server.state import State


class Sent(NamedTuple):
    """A prompt, or two texts that are read together, each with the field that it came in."""

    field: str
    prompt: Prompt
    second_field: str = ""
    second: str | None = None


Entry = Callable[[RequestOutput], dict[str, Any]]
"""What the answer says of one text, but for its place."""


def pooling_router(state: State) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def create_embeddings(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, EmbeddingBody)
        check_asked(state, body, "embed")

        def entry(output: RequestOutput) -> dict[str, Any]:
            return {"object": "embedding", "embedding": numbers(output, body.encoding_format)}

        return await _listed(request, state, body, body.params(), "embd", entry)

    @router.post("/classify")
    async def classify(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, ClassifyBody)
        check_asked(state, body, "classify")
        labels = pooling_of(state.engine.info).labels or ()

        def entry(output: RequestOutput) -> dict[str, Any]:
            probs = floats(output.pooled)
            label = labels[max(range(len(probs)), key=probs.__getitem__)]
            return {"label": label, "probs": probs, "num_classes": len(probs)}

        return await _listed(request, state, body, body.params(), "classify", entry)

    @router.post("/pooling")
    async def pool(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, PoolingBody)
        check_asked(state, body, None)

        def entry(output: RequestOutput) -> dict[str, Any]:
            return {"object": "pooling", "data": numbers(output, body.encoding_format)}

        return await _listed(request, state, body, body.params(), "pool", entry)

    return router


def check_asked(state: State, body: PooledBody, task: str | None) -> None:
    """Raises UnknownModel, EngineDead, Draining, and RequestError for a model that has no answer for the task."""
    state.check_model(body.model)
    state.check_ready()
    pooling_of(state.engine.info, task)


def numbers(output: RequestOutput, encoding: str) -> Any:
    """As numbers, or as OpenAI's client asks for them by itself: base64 of float32, little-endian."""
    return floats(output.pooled) if encoding == "float" else b64encode(output.pooled or b"").decode("ascii")


async def pooled(
    request: Request,
    state: State,
    body: PooledBody,
    params: PoolingParams,
    prompts: Sequence[Sent],
    many: str,
) -> list[RequestOutput] | None:
    """What became of each prompt; None when the client has hung up.

    many  the field that decides how many prompts there are
    Raises RequestError naming the field at fault, QueueFull, RequestFailed, EngineDead.
    """
    with _named(many):
        state.engine.check_room(len(prompts))
    requests: list[PooledRequest] = []
    for sent in prompts:
        if await request.is_disconnected():
            return None
        with _named(sent.field, sent.second_field):
            made = await state.engine.pooling_request(
                sent.prompt,
                params,
                second=sent.second,
                priority=body.priority,
                truncate_prompt_tokens=body.truncate_prompt_tokens,
            )
        requests.append(made)
    return await collected(request, state.engine.submit(requests))


@contextmanager
def _named(prompt: str, second: str = "") -> Iterator[None]:
    """What the engine calls prompt and second came from the client in fields of these names."""
    try:
        yield
    except RequestError as error:
        error.parameter = {"prompt": prompt, "second": second}.get(error.parameter or "", error.parameter)
        raise


def answer(state: State, kind: str, outputs: Sequence[RequestOutput], **content: Any) -> Response:
    """The JSON around `content`; `kind` begins its id."""
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    envelope = {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": state.model_name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSON(envelope | content, headers={"x-request-id": envelope["id"]})


async def _listed(
    request: Request, state: State, body: InputBody, params: PoolingParams, kind: str, entry: Entry
) -> Response:
    given = listed_prompts(body.input, "input")
    prompts = [Sent("input" if len(given) == 1 else f"input[{i}]", prompt) for i, prompt in enumerate(given)]
    outputs = await pooled(request, state, body, params, prompts, "input")
    if outputs is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    def written() -> Response:
        data = [{"index": i} | entry(output) for i, output in enumerate(outputs)]
        return answer(state, kind, outputs, data=data)

    return await asyncio.to_thread(written)
