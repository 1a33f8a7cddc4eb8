"""Everything that is measured, and how Prometheus is told of it.

Counting costs no lock and no library: observers and the front count in plain numbers, on the event loop's thread, and
the families that Prometheus reads are made of them at each scrape, under both names. No engine is asked anything.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from core.contracts.telemetry import Observer
from core.engine.engine import EngineInfo
from server.operations.catalog import FRONT, METRICS
from server.operations.histogram import Histogram
from server.operations.http import HTTPCounts
from server.operations.meter import EngineMeter, Meter
from server.operations.metric import ALIAS, PREFIX, Metric, Reading, Values

if TYPE_CHECKING:
    from server.state import Served

FAMILIES: Mapping[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Metrics(Collector):
    """One per app, with a registry of its own. models  what is served, by name; may change"""

    def __init__(self, models: "Mapping[str, Served]") -> None:
        self.http = HTTPCounts()
        self._models = models
        self._meters: dict[str, Meter] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def observer(self, name: str, info: EngineInfo) -> Observer:
        """What measures an engine that begins to serve this model."""
        meter = self._meters.setdefault(name, Meter(info.max_model_len))
        return EngineMeter(meter, info)

    def meter(self, name: str) -> Meter:
        """What has been measured of a model."""
        return self._meters[name]

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Family]:
        readings = {
            name: Reading(served=self._models[name], meter=meter) for name, meter in self._meters.items()
        }
        for metric in METRICS:
            values = {name: metric.read(reading) for name, reading in readings.items()}
            yield _family(metric, PREFIX, ("model_name",), {(name,): value for name, value in values.items()})
            if metric.alias:
                numbered = {(name, "0"): value for name, value in values.items()}
                yield _family(metric, ALIAS, ("model_name", "engine"), numbered)
        for metric in FRONT:
            yield _family(metric, PREFIX, (), {(): metric.read(self.http)})


def _family(
    metric: Metric[Any], prefix: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Values]
) -> Family:
    """A metric as Prometheus reads it. values  by what stands in `labels`, which come before its own"""
    family = FAMILIES[metric.kind](prefix + metric.name, metric.help, labels=(*labels, *metric.labels))
    for first, value in values.items():
        found = value if isinstance(value, Mapping) else {(): value}
        for rest, number in found.items():
            if isinstance(number, Histogram):
                family.add_metric((*first, *rest), number.cumulative(), number.sum)
            else:
                family.add_metric((*first, *rest), number)
    return family
