"""Whether traces are wanted, by OpenTelemetry's own environment variables, and where they go.

Source: OpenTelemetry Specification, Environment Variable Specification.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core import __version__
from core.contracts.telemetry import ObserverFactory
from core.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER = "OTEL_TRACES_EXPORTER"
SERVICE = "llm"


def start() -> ObserverFactory | None:
    """What makes the observers, once a collector is named and nothing switches traces off.

    Raises ConfigError when what is asked for cannot be had.
    """
    if not wanted(os.environ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        named = next(name for name in ENDPOINTS if os.environ.get(name))
        raise ConfigError(
            f"{named} asks for traces, and a package that makes them is missing ({error}); install "
            f'them with  pip install "core[tracing]", or unset it',
            setting=named,
        ) from None
    from plugins.tracing.spans import SpanObserver

    provider = TracerProvider(resource=_resource(os.environ))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("core", __version__)
    return lambda model, info: SpanObserver(tracer, model, info)


def wanted(environment: Mapping[str, str]) -> bool:
    """Raises ConfigError when traces are asked for in a way that is not supported."""
    if not any(environment.get(name) for name in ENDPOINTS):
        return False
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get(EXPORTER) or "otlp"
    if exporter == "none":
        return False
    if exporter != "otlp":
        raise ConfigError(f"{EXPORTER} is {exporter!r}; otlp and none are supported", setting=EXPORTER)
    for name in PROTOCOLS:
        protocol = environment.get(name) or "http/protobuf"
        if protocol != "http/protobuf":
            raise ConfigError(f"{name} is {protocol!r}; http/protobuf is supported", setting=name)
    return True


def _resource(environment: Mapping[str, str]) -> "Resource":
    """What sends the spans: as the environment names it, else by our name."""
    from opentelemetry.sdk.resources import Resource

    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create({} if named else {"service.name": SERVICE, "service.version": __version__})
