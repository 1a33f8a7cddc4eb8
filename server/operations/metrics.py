"""GET /metrics: everything that is measured, for Prometheus. It answers while an engine hangs, or is gone."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from server.routes import Routes
from server.state import State


def metrics_routes(state: State) -> Routes:
    routes = Routes()

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(state.metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes
