"""Routes, and what each declares: who may call it, what it reads, what it answers.

`app` serves what is declared here, `guard.keys` asks for a key where a route does not say that it is open, and
`openapi` describes it. A route that says nothing is closed.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]


class Access(Enum):
    """Who may call a route."""

    OPEN = "anybody: probes, and a browser that loads a page, cannot send a key"
    KEY = "whoever has a key, when keys are asked for"


@dataclass(frozen=True, kw_only=True)
class Route:
    """A method of a path. `body` and `answer` are the models of its JSON; None where there is none.

    query   the model of the parameters in its URL
    events  whether it can answer with server-sent events
    event   the model of an event's data; None: they are of many kinds
    """

    method: str
    path: str
    handler: Handler
    access: Access
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    events: bool = False
    event: type[BaseModel] | None = None


class Routes:
    """The routes of one part of the API, in the order in which they are declared."""

    def __init__(self) -> None:
        self._declared: list[Route] = []

    def __iter__(self) -> Iterator[Route]:
        return iter(self._declared)

    def get(
        self,
        *paths: str,
        query: type[BaseModel] | None = None,
        answer: type[BaseModel] | None = None,
        access: Access = Access.KEY,
    ) -> Callable[[Handler], Handler]:
        """Decorator of the handler of GET (and HEAD) for these paths."""
        return self._declare("GET", paths, access=access, query=query, answer=answer)

    def post(
        self,
        *paths: str,
        body: type[BaseModel] | None = None,
        answer: type[BaseModel] | None = None,
        access: Access = Access.KEY,
        events: bool = False,
        event: type[BaseModel] | None = None,
    ) -> Callable[[Handler], Handler]:
        """Decorator of the handler of POST for these paths. An `event` says that there are `events`."""
        events = events or event is not None
        return self._declare(
            "POST", paths, access=access, body=body, answer=answer, events=events, event=event
        )

    def delete(self, *paths: str, answer: type[BaseModel] | None = None) -> Callable[[Handler], Handler]:
        """Decorator of the handler of DELETE for these paths."""
        return self._declare("DELETE", paths, access=Access.KEY, answer=answer)

    def _declare(self, method: str, paths: tuple[str, ...], **more: Any) -> Callable[[Handler], Handler]:
        def declared(handler: Handler) -> Handler:
            self._declared += [Route(method=method, path=path, handler=handler, **more) for path in paths]
            return handler

        return declared
