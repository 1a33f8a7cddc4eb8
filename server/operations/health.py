"""GET /health: the engines live. /health/ready: requests are taken. /health/progress: requests get on. GET /version.

All but the last are for probes, which cannot send a key. They ask nothing of an engine, and so never wait for one.
"""

from starlette.requests import Request
from starlette.responses import Response

from core import __version__
from server.errors import JSON
from server.operations.answers import Health, Readiness, Version
from server.routes import Access, Routes
from server.state import State


def health_routes(state: State) -> Routes:
    routes = Routes()

    @routes.get("/health", answer=Health, access=Access.OPEN)
    async def health(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        state.check_health()
        return JSON({"status": "ok"})

    @routes.get("/health/ready", answer=Readiness, access=Access.OPEN)
    async def ready(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        state.check_health()
        state.check_open()
        return JSON({"status": "ready"})

    @routes.get("/health/progress", answer=Health, access=Access.OPEN)
    async def progress(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        state.check_progress()
        return JSON({"status": "ok"})

    @routes.get("/version", answer=Version)
    async def version(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON({"version": __version__})

    return routes
