"""Every request has an id and every failure an answer."""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import describe, is_anthropic

log = logging.getLogger("server")

_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Label:
    """Takes the client's X-Request-Id, or makes one, and sends it with the answer.

    It is a label: any number of requests may have the same, for the engine has ids of its own. What the routes
    raise and nobody answered becomes an error 500 here, with nothing of what went wrong in it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        label = given if _SANE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = label
        started = False

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = label
                if is_anthropic(scope["path"]):
                    headers["request-id"] = label  # Anthropic's name for it
            await send(message)

        try:
            await self._app(scope, receive, labelled)
        except Exception as error:
            if started:
                raise  # the server ends the connection, so that nobody takes what was sent for whole
            log.exception("request %s failed", label)
            await describe(error).response()(scope, receive, labelled)
