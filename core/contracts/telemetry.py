"""What watches requests: traces, and measurements of other kinds. It sees everything and changes nothing.

A plugin declares a `Telemetry`. Whoever serves models starts it once, and asks it for an observer of each engine, which
lives where answers are put together: in the server's process, beside the engine's client.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.contracts.versions import Version

if TYPE_CHECKING:
    from core.engine.engine import EngineInfo, EngineStatistics
    from core.engine.request import Request
    from core.outputs import RequestOutput


class Observer:
    """Told of each event on the event loop's thread, between two messages: methods return at once and never raise.

    An observer is one engine's; an engine may have several. Methods that are not overridden do nothing.
    """

    def stepped(self, statistics: "EngineStatistics") -> None:
        """The engine has computed a step, or was asked how things stand."""

    def began(self, request: "Request", output: "RequestOutput") -> None:
        """The first token of any of its answers came, or the numbers that it was pooled to."""

    def grew(self, output: "RequestOutput", num_tokens: int, interval: float | None) -> None:
        """An answer gained tokens, `interval` seconds after it last did; None: they are its first."""

    def ended(self, request: "Request", output: "RequestOutput") -> None:
        """A request is over: finished, failed (`output.error`), or abandoned by its reader ("abort" in its answers)."""


ObserverFactory = Callable[[str, "EngineInfo"], Observer]
"""Makes the observer of an engine that begins to serve: what clients call its model, and what it is."""


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Something that wants to be told of every request.

    contract  the version of this contract that it was written for
    start     called once by a server that starts, before it loads a model; None: it is switched off. What it needs it
              imports here. Raises ConfigError when it is wanted and cannot be had: then the server does not start.
    """

    contract: Version
    name: str
    start: Callable[[], ObserverFactory | None]
