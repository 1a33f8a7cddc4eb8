"""Who stands where in front of the routes."""

from collections.abc import Sequence

from fastapi import FastAPI

from server.guard.access_log import log_access
from server.guard.ends import Ended, TellEnds
from server.guard.hosts import AllowHosts, accepted_hosts
from server.guard.keys import RequireKey
from server.guard.labels import Label
from server.guard.limits import Limits
from server.guard.origins import AllowOrigins
from server.routes import Route
from server.settings import ServerSettings


def stand_guard(app: FastAPI, settings: ServerSettings, routes: Sequence[Route], told: Ended) -> None:
    """Put the guards in front of the app, from the inside out. told  of how every request ends"""
    app.add_middleware(Limits, max_bytes=settings.max_body_bytes)
    if settings.api_key:
        app.add_middleware(RequireKey, keys=settings.api_key, routes=routes)
    app.add_middleware(AllowOrigins, origins=settings.allowed_origins)
    app.add_middleware(AllowHosts, names=accepted_hosts(settings))
    app.add_middleware(Label)
    app.add_middleware(TellEnds, told=(told, log_access) if settings.access_log else (told,))
