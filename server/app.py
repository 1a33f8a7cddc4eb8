"""The application: routes, what stands in front of them, and how errors are answered."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core import __version__
from core.engine.async_engine import AsyncEngine
from core.errors import CoreError
from server.anthropic.messages import message_routes
from server.errors import (
    Draining,
    EngineSilent,
    RequestFailed,
    Restarting,
    ServerStopping,
    UnknownModel,
    answer_error,
)
from server.guard.order import stand_guard
from server.openai.chat import chat_routes
from server.openai.completions import completion_routes
from server.openai.models import model_routes
from server.openai.responses.routes import response_routes
from server.openai.tokenize import tokenize_routes
from server.openapi import openapi_routes
from server.operations.health import health_routes
from server.operations.http import CountRequests
from server.operations.metrics import metrics_routes
from server.operations.sagemaker import sagemaker_routes
from server.operations.stats import stats_routes
from server.pooling.embeddings import pooling_routes
from server.pooling.scoring import scoring_routes
from server.routes import Handler, Route
from server.settings import ServerSettings
from server.state import Served, State, public_name
from server.ui.page import page_routes
from server.waiting import attended

PARTS = (
    completion_routes,
    chat_routes,
    response_routes,
    message_routes,
    pooling_routes,
    scoring_routes,
    model_routes,
    tokenize_routes,
    health_routes,
    metrics_routes,
    stats_routes,
    page_routes,
)

EXPECTED = (
    CoreError,
    HTTPException,
    ClientDisconnect,
    UnknownModel,
    Restarting,
    EngineSilent,
    Draining,
    ServerStopping,
    RequestFailed,
)
"""Errors that are answered with what `describe` says of them."""


def create_app(engine: AsyncEngine, settings: ServerSettings) -> FastAPI:
    """The app for one started engine, which the caller closes."""
    spelled = engine.info.model
    name = settings.served_model_name or public_name(spelled)
    return app_of(State(settings, [Served(name=name, spelled=spelled, engine=engine)]))


def app_of(state: State) -> FastAPI:
    """The app for the models of a state. `app.state.shared` is the state."""
    app = FastAPI(
        title="core",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would go wherever the Host header says
    )
    app.state.shared = state
    routes = declared(state)
    by_path: dict[str, dict[str, Handler]] = {}
    for route in routes:
        handler = route.handler
        if route.method == "POST":
            handler = attended(handler, state.settings.request_timeout)
        by_path.setdefault(route.path, {})[route.method] = handler
    for path, handlers in by_path.items():
        app.add_route(path, _by_method(handlers), methods=list(handlers), include_in_schema=False)
    for kind in EXPECTED:
        app.add_exception_handler(kind, answer_error)
    counted = CountRequests(state.metrics.http, {route.path for route in routes})
    stand_guard(app, state.settings, routes, counted)
    return app


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    """One handler for all methods of a path, so that 405 names them all. HEAD is GET whose body is not sent."""

    async def handler(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return handler


def declared(state: State) -> list[Route]:
    """Every route of the server."""
    routes = [route for part in PARTS for route in part(state)]
    routes += sagemaker_routes(state, routes)
    return [*routes, *openapi_routes(state, routes)]
