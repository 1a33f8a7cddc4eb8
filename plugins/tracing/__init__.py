"""OpenTelemetry traces: a span for each request, sent to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names.

Needs the extra `tracing` once that variable is set. Spans hold numbers and names, never what was said.
"""

from core import hookimpl
from core.contracts.telemetry import Telemetry


@hookimpl
def core_telemetry() -> list[Telemetry]:
    from plugins.tracing.starting import start

    return [Telemetry(contract=(1, 0), name="opentelemetry", start=start)]
