"""The application: routes, what stands in front of them, and how errors are answered."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from core import __version__
from core.engine.async_engine import AsyncEngine
from core.errors import CoreError
from server.chat import chat_router
from server.completions import completions_router
from server.errors import Draining, RequestFailed, ServerStopping, UnknownModel, answer_error
from server.health import health_router
from server.models import models_router
from server.pooling import pooling_router
from server.scoring import scoring_router
from server.security import LimitBody, RequireKey
from server.settings import ServerSettings
from server.state import State, public_name


def create_app(engine: AsyncEngine, settings: ServerSettings) -> FastAPI:
    """The app for a started engine, which the caller closes. `app.state.shared` is the State."""
    state = State(engine, settings, settings.served_model_name or public_name(engine.info.model))
    app = FastAPI(title="core", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.shared = state
    routers = (completions_router, chat_router, pooling_router, scoring_router, models_router, health_router)
    for router in routers:
        app.include_router(router(state))
    for kind in (CoreError, HTTPException, UnknownModel, Draining, ServerStopping, RequestFailed, Exception):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(LimitBody, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(RequireKey, key=settings.api_key)
    return app
