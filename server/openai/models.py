"""GET /v1/models and /v1/models/{id}."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.errors import JSON
from server.openai.answers import ModelCard, ModelList
from server.routes import Routes
from server.state import Served, State


def model_routes(state: State) -> Routes:
    routes = Routes()

    @routes.get("/v1/models", answer=ModelList)
    async def list_models(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON({"object": "list", "data": [_card(served) for served in state.models.values()]})

    @routes.get("/v1/models/{model:path}", answer=ModelCard)
    async def get_model(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON(_card(state.find(request.path_params["model"])))

    return routes


def _card(served: Served) -> dict[str, Any]:
    pooling = served.engine.info.pooling
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "core",
        "max_model_len": served.engine.info.max_model_len,
        "task": "generate" if pooling is None else pooling.task,
    }
