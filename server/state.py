"""What the routes share: the models that are served, each with its engine, and whether the server is stopping."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from core.contracts.telemetry import ObserverFactory
from core.engine.answers import Answers
from core.engine.async_engine import AsyncEngine
from core.engine.request import Request
from server.errors import Draining, EngineSilent, Restarting, UnknownModel
from server.operations.collector import Metrics
from server.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.requests import Request as HTTPRequest

TRACE_HEADERS = ("traceparent", "tracestate")


@dataclass(kw_only=True)
class Served:
    """A model that is served. `engine` is another one after each of `num_restarts`.

    name     what clients call it
    spelled  what the server's user called it, which clients may, too
    """

    name: str
    spelled: str
    engine: AsyncEngine
    created: int = field(default_factory=lambda: int(time()))
    num_restarts: int = 0
    _observed: list[ObserverFactory] = field(default_factory=list[ObserverFactory])

    def observe(self, factory: ObserverFactory) -> None:
        """Have an observer for the engine that is there, and one for each that takes its place."""
        self._observed.append(factory)
        self.engine.observe(factory(self.name, self.engine.info))

    def replace(self, engine: AsyncEngine) -> None:
        """Serve with this engine from now on; the one before it is dead."""
        for factory in self._observed:
            engine.observe(factory(self.name, engine.info))
        self.engine = engine
        self.num_restarts += 1

    def submit(
        self, asking: "HTTPRequest", requests: Sequence[Request], prompts: Sequence[str | None] = ()
    ) -> Answers:
        """`AsyncEngine.submit` for an HTTP request, whose trace the requests become part of."""
        trace = {name: asking.headers[name] for name in TRACE_HEADERS if name in asking.headers}
        if trace:
            requests = [replace(request, trace=trace) for request in requests]
        return self.engine.submit(requests, prompts)


class State:
    """One per app. `draining` turns true once, when the server is asked to stop."""

    def __init__(self, settings: ServerSettings, models: Iterable[Served]) -> None:
        """The first model is the one of requests that name none. Names differ from one another."""
        self.settings = settings
        self.models = {served.name: served for served in models}
        self.draining = False
        self.detached: set[asyncio.Task[None]] = set()
        self.metrics = Metrics(self.models)
        self.observe(self.metrics.observer)

    @property
    def default(self) -> Served:
        return next(iter(self.models.values()))

    def observe(self, factory: ObserverFactory) -> None:
        """Have an observer for the engine of every model, whichever it is."""
        for served in self.models.values():
            served.observe(factory)

    def find(self, asked: str | None) -> Served:
        """The model of a request: the one it names, as its clients or the server's user call it, or the default.

        Raises UnknownModel.
        """
        if asked is None:
            return self.default
        found = self.models.get(asked) or next((m for m in self.models.values() if m.spelled == asked), None)
        if found is None:
            raise UnknownModel(asked, list(self.models))
        return found

    def take(self, asked: str | None) -> Served:
        """The same for a request that is to be computed. Raises UnknownModel, EngineDead, Restarting, Draining."""
        found = self.find(asked)
        self._check_alive(found)
        self.check_open()
        return found

    def check_open(self) -> None:
        """Raises Draining once the server is stopping."""
        if self.draining:
            raise Draining

    def check_health(self) -> None:
        """Raises EngineDead or Restarting when an engine is gone, EngineSilent when one hangs."""
        for served in self.models.values():
            self._check_alive(served)
            if served.engine.silent_for > self.settings.engine_timeout:
                raise EngineSilent(f"the engine of {served.name} does not answer")

    def check_progress(self) -> None:
        """The same, and EngineSilent when an engine has requests and has computed no step for too long."""
        self.check_health()
        for served in self.models.values():
            if (seconds := served.engine.stalled_for) > self.settings.progress_timeout:
                raise EngineSilent(
                    f"the engine of {served.name} has not computed anything for {seconds:.0f} s"
                )

    def _check_alive(self, served: Served) -> None:
        if self.settings.restart_engine and not served.engine.is_alive:
            raise Restarting
        served.engine.check_health()

    def detach(self, task: "asyncio.Task[None]") -> None:
        """Let this go on without a connection. The server waits for it when it stops, as for connections."""
        self.detached.add(task)
        task.add_done_callback(self.detached.discard)

    def fail_unfinished(self, error: Exception) -> None:
        """Abort everything under way; its readers get this error."""
        for served in self.models.values():
            served.engine.fail_unfinished(error)


def public_name(model: str) -> str:
    """What to call a model that the user called `model`: a path gives its last part, so that none leaks."""
    path = Path(model)
    if path.is_absolute() or path.exists() or model.startswith((".", "~")):
        resolved = path.expanduser().resolve()
        return resolved.stem if resolved.suffix == ".gguf" else resolved.name
    return model
