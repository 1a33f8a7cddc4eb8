"""GET /v1/models and /v1/models/{id}."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from server.errors import JSON
from server.state import State


def models_router(state: State) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON({"object": "list", "data": [_card(state)]})

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        state.check_model(model)
        return JSON(_card(state))

    return router


def _card(state: State) -> dict[str, Any]:
    pooling = state.engine.info.pooling
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.created,
        "owned_by": "core",
        "max_model_len": state.engine.info.max_model_len,
        "task": "generate" if pooling is None else pooling.task,
    }
