"""POST /v1/embeddings, /classify and /pooling."""

import asyncio
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from core.engine.pooling_checks import pooling_of
from core.engine.request import Request as PooledRequest
from core.outputs import RequestOutput, floats
from core.pooling_params import PoolingParams
from server.answering import collected
from server.body import read_body
from server.errors import JSON
from server.fields import called
from server.pooling.answers import Classifications, Embeddings, PooledTexts
from server.pooling.bodies import ClassifyBody, EmbeddingBody, InputBody, PooledBody, PoolingBody
from server.routes import Routes
from server.shapes import Prompt
from server.state import Served, State


class Sent(NamedTuple):
    """A prompt, or two texts that are read together, each with the field that it came in."""

    field: str
    prompt: Prompt
    second_field: str = ""
    second: str | None = None


Entry = Callable[[RequestOutput], dict[str, Any]]
"""What the answer says of one text, but for its place."""


def pooling_routes(state: State) -> Routes:
    routes = Routes()

    @routes.post("/v1/embeddings", body=EmbeddingBody, answer=Embeddings)
    async def create_embeddings(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, EmbeddingBody)
        served = taken(state, body, "embed")

        def entry(output: RequestOutput) -> dict[str, Any]:
            return {"object": "embedding", "embedding": numbers(output, body.encoding_format)}

        return await _listed(request, served, body, body.params(), "embd", entry)

    @routes.post("/classify", body=ClassifyBody, answer=Classifications)
    async def classify(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, ClassifyBody)
        served = taken(state, body, "classify")
        labels = pooling_of(served.engine.info).labels or ()

        def entry(output: RequestOutput) -> dict[str, Any]:
            probs = floats(output.pooled)
            label = labels[max(range(len(probs)), key=probs.__getitem__)]
            return {"label": label, "probs": probs, "num_classes": len(probs)}

        return await _listed(request, served, body, body.params(), "classify", entry)

    @routes.post("/pooling", body=PoolingBody, answer=PooledTexts)
    async def pool(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, PoolingBody)
        served = taken(state, body, None)

        def entry(output: RequestOutput) -> dict[str, Any]:
            return {"object": "pooling", "data": numbers(output, body.encoding_format)}

        return await _listed(request, served, body, body.params(), "pool", entry)

    return routes


def taken(state: State, body: PooledBody, task: str | None) -> Served:
    """The model that is asked.

    Raises UnknownModel, EngineDead, Draining, and RequestError for a model that has no answer for the task.
    """
    served = state.take(body.model)
    pooling_of(served.engine.info, task)
    return served


def numbers(output: RequestOutput, encoding: str) -> Any:
    """As numbers, or as OpenAI's client asks for them by itself: base64 of float32, little-endian."""
    return floats(output.pooled) if encoding == "float" else b64encode(output.pooled or b"").decode("ascii")


async def pooled(
    request: Request,
    served: Served,
    body: PooledBody,
    params: PoolingParams,
    prompts: Sequence[Sent],
    many: str,
) -> list[RequestOutput]:
    """What became of each prompt.

    many  the field that decides how many prompts there are
    Raises RequestError naming the field at fault, QueueFull, RequestFailed, EngineDead.
    """
    with called(prompt=many):
        served.engine.room.check(len(prompts))
    requests: list[PooledRequest] = []
    for sent in prompts:
        with called(prompt=sent.field, second=sent.second_field):
            made = await served.engine.pooling_request(
                sent.prompt,
                params,
                second=sent.second,
                priority=body.priority,
                truncate_prompt_tokens=body.truncate_prompt_tokens,
            )
        requests.append(made)
    return await collected(served.submit(request, requests))


def answer(served: Served, kind: str, outputs: Sequence[RequestOutput], **content: Any) -> Response:
    """The JSON around `content`; `kind` begins its id."""
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    envelope = {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": served.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSON(envelope | content)


async def _listed(
    request: Request, served: Served, body: InputBody, params: PoolingParams, kind: str, entry: Entry
) -> Response:
    one = len(body.input) == 1
    prompts = [Sent("input" if one else f"input[{i}]", prompt) for i, prompt in enumerate(body.input)]
    outputs = await pooled(request, served, body, params, prompts, "input")

    def written() -> Response:
        data = [{"index": i} | entry(output) for i, output in enumerate(outputs)]
        return answer(served, kind, outputs, data=data)

    return await asyncio.to_thread(written)
