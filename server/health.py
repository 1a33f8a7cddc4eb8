"""GET /health: the engine lives. GET /health/ready: requests are taken. GET /version."""

from fastapi import APIRouter
from starlette.responses import Response

from core import __version__
from server.errors import JSON
from server.state import State


def health_router(state: State) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction]
        state.engine.check_health()
        return JSON({"status": "ok"})

    @router.get("/health/ready")
    async def ready() -> Response:  # pyright: ignore[reportUnusedFunction]
        state.check_ready()
        return JSON({"status": "ready"})

    @router.get("/version")
    async def version() -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON({"version": __version__})

    return router
