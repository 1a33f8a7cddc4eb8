"""GET /ping and POST /invocations: what SageMaker asks of a container. An invocation is what its fields make it."""

from collections.abc import Iterable

from pydantic import RootModel
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RequestError
from server.body import read_object
from server.errors import JSON
from server.openai.bodies import ChatBody, CompletionBody
from server.operations.answers import Invoked, Ping
from server.pooling.bodies import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody
from server.routes import Access, Route, Routes
from server.state import Served, State

BY_FIELD = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
    "text_1": "/v1/score",
    "documents": "/v1/rerank",
}
"""The field that a body must have -> the route that it is for. A model that labels texts gets `input` as /classify."""


class Invocation(
    RootModel[ChatBody | CompletionBody | EmbeddingBody | ClassifyBody | ScoreBody | RerankBody]
):
    """POST /invocations: the body of the route that it is for."""


def sagemaker_routes(state: State, routes: Iterable[Route]) -> Routes:
    """Besides the routes that an invocation may stand for."""
    handlers = {route.path: route.handler for route in routes if route.method == "POST"}
    added = Routes()

    @added.get("/ping", answer=Ping, access=Access.OPEN)
    async def ping(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        state.check_health()
        return JSON({"status": "ok"})

    @added.post("/invocations", body=Invocation, answer=Invoked, events=True)
    async def invoke(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await handlers[await _path(state, request)](request)

    return added


async def _path(state: State, request: Request) -> str:
    """The route that a body is for. Raises RequestError when none of the fields that tell is there, or several are."""
    given = await read_object(request)
    told = [name for name in BY_FIELD if given.get(name) is not None]
    if len(told) != 1:
        raise RequestError(
            f"exactly one of {', '.join(BY_FIELD)} tells what is asked for; the body has "
            f"{' and '.join(told) or 'none of them'}",
            parameter=told[1] if told else None,
        )
    (field,) = told
    model = given.get("model")
    if field == "input" and (model is None or isinstance(model, str)) and _labels(state.find(model)):
        return "/classify"
    return BY_FIELD[field]


def _labels(served: Served) -> bool:
    pooling = served.engine.info.pooling
    return pooling is not None and pooling.task == "classify"
