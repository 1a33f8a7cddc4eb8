"""Those that watch an engine, as one observer."""

import logging
from collections.abc import Callable

from core.contracts.telemetry import Observer
from core.engine.engine import EngineStatistics
from core.engine.request import Request
from core.outputs import RequestOutput

log = logging.getLogger("core.engine")


class Observers(Observer):
    """Tells each in turn. One that raises has failed alone: it is told of nothing more, and answers go on."""

    def __init__(self) -> None:
        self._told: list[Observer] = []

    def add(self, observer: Observer) -> None:
        self._told.append(observer)

    def stepped(self, statistics: EngineStatistics) -> None:
        self._tell(lambda observer: observer.stepped(statistics))

    def began(self, request: Request, output: RequestOutput) -> None:
        self._tell(lambda observer: observer.began(request, output))

    def grew(self, output: RequestOutput, num_tokens: int, interval: float | None) -> None:
        self._tell(lambda observer: observer.grew(output, num_tokens, interval))

    def ended(self, request: Request, output: RequestOutput) -> None:
        self._tell(lambda observer: observer.ended(request, output))

    def _tell(self, event: Callable[[Observer], None]) -> None:
        for observer in tuple(self._told):
            try:
                event(observer)
            except Exception:
                log.exception("%s failed, and is told of nothing more", type(observer).__name__)
                self._told.remove(observer)
