"""What a metric is, and what it is read from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from core.engine.engine import EngineStatistics
from server.operations.histogram import Histogram
from server.operations.meter import NOTHING_YET, Meter

if TYPE_CHECKING:
    from server.state import Served

Kind = Literal["counter", "gauge", "histogram"]

PREFIX, ALIAS = "llm_", "vllm:"
"""Before our own names, and before those of vLLM's dashboards."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A model at the time of a scrape. latest  what its engine said last; nobody waits for it to say more"""

    served: "Served"
    meter: Meter

    @property
    def latest(self) -> EngineStatistics:
        return self.served.engine.latest or NOTHING_YET


Value = float | Histogram
Values = Value | Mapping[tuple[str, ...], Value]
"""One value, or several by what stands in the labels."""

Source = TypeVar("Source")


@dataclass(frozen=True)
class Metric(Generic[Source]):
    """One metric. A counter's name gets `_total` where it is exported.

    labels  besides `model_name`, which those of a model have
    alias   whether vLLM has it: then it is exported under vLLM's prefix, too, with vLLM's label `engine`
    """

    name: str
    kind: Kind
    help: str
    read: Callable[[Source], Values]
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    alias: bool = field(default=True, kw_only=True)

    @property
    def exported(self) -> str:
        """Its name without a prefix."""
        return f"{self.name}_total" if self.kind == "counter" else self.name
