"""OpenTelemetry traces: a span for each request, with its times and counts and without its text."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import CHAT, NAME, ThreadedServer, server_process, wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from core.errors import ConfigError
from plugins.tracing import core_telemetry
from plugins.tracing.spans import SpanObserver
from plugins.tracing.starting import wanted
from server.app import create_app
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "house=7"}
SECRET = "The treasure lies under the third oak."

Post = Callable[..., tuple[httpx.Response, ReadableSpan]]


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def http(server: ThreadedServer, spans: InMemorySpanExporter) -> Iterator[httpx.Client]:
    settings = ServerSettings(port=0, served_model_name=NAME)
    app = create_app(server.engine, settings)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    app.state.shared.observe(lambda model, info: SpanObserver(tracer, model, info))
    with httpx.Client(base_url=server.open(settings, app), timeout=60) as made:
        yield made


@pytest.fixture
def post(http: httpx.Client, spans: InMemorySpanExporter) -> Post:
    """Sends a request and waits for its span."""

    def sent(
        path: str, headers: dict[str, str] | None = None, **body: Any
    ) -> tuple[httpx.Response, ReadableSpan]:
        spans.clear()
        response = http.post(path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        wait_for(lambda: bool(spans.get_finished_spans()))
        (span,) = spans.get_finished_spans()
        return response, span

    return sent


class TestSpan:
    def test_it_says_what_was_asked_and_what_came_of_it(self, post: Post) -> None:
        response, span = post(
            "/v1/completions", prompt=SECRET, max_tokens=6, ignore_eos=True, temperature=0.5, seed=3, n=2
        )
        usage, found = response.json()["usage"], dict(span.attributes or {})
        assert span.name == f"text_completion {NAME}"
        assert span.kind is SpanKind.SERVER
        assert found["gen_ai.operation.name"] == "text_completion"
        assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == NAME
        assert found["gen_ai.request.max_tokens"] == 6
        assert found["gen_ai.request.temperature"] == 0.5
        assert found["gen_ai.request.seed"] == 3
        assert found["gen_ai.request.choice.count"] == 2
        assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
        assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 12
        assert found["gen_ai.response.finish_reasons"] == ("length", "length")
        assert str(found["gen_ai.response.id"]).startswith(response.json()["id"])
        assert span.status.status_code is StatusCode.UNSET

    def test_its_times_add_up(self, post: Post) -> None:
        _, span = post("/v1/completions", prompt=SECRET, max_tokens=6, ignore_eos=True)
        found = dict(span.attributes or {})
        queue, prefill, decode, first, whole = (
            found[f"gen_ai.latency.{name}"]
            for name in (
                "time_in_queue",
                "time_in_model_prefill",
                "time_in_model_decode",
                "time_to_first_token",
                "e2e",
            )
        )
        assert queue + prefill == pytest.approx(first)
        assert first + decode == pytest.approx(whole)
        assert span.start_time is not None and span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(whole, abs=1e-5)
        assert [event.name for event in span.events] == ["admitted", "first token"]
        assert span.start_time < span.events[0].timestamp < span.events[1].timestamp < span.end_time

    def test_it_holds_nothing_of_what_was_said(self, post: Post) -> None:
        response, span = post(
            "/v1/completions", prompt=SECRET, max_tokens=20, ignore_eos=True, stop=["oak", "zzz"]
        )
        written = span.to_json()
        assert "treasure" not in written and "zzz" not in written
        assert response.json()["choices"][0]["text"] not in written

    def test_a_conversation_is_a_chat(self, post: Post) -> None:
        _, span = post("/v1/chat/completions", messages=CHAT, max_completion_tokens=3)
        assert span.name == f"chat {NAME}"
        assert (span.attributes or {})["gen_ai.operation.name"] == "chat"

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": "Once", "max_tokens": 2}),
            ("/v1/completions", {"prompt": "Once", "max_tokens": 2, "stream": True}),
            ("/v1/chat/completions", {"messages": CHAT, "max_completion_tokens": 2}),
            ("/v1/messages", {"messages": CHAT, "max_tokens": 2, "model": NAME}),
            ("/invocations", {"messages": CHAT, "max_completion_tokens": 2}),
        ],
    )
    def test_it_is_part_of_its_clients_trace(self, post: Post, path: str, body: dict[str, Any]) -> None:
        _, span = post(path, headers=PARENT, **body)
        assert span.parent is not None
        assert f"{span.context.trace_id:032x}" == TRACE_ID
        assert f"{span.parent.span_id:016x}" == PARENT_ID
        assert span.context.trace_state.get("house") == "7"

    @pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", f"00-{TRACE_ID}-{PARENT_ID}", "é" * 100])
    def test_a_header_that_is_none_begins_a_trace(self, post: Post, header: str) -> None:
        headers = {"traceparent": header.encode()}
        _, span = post("/v1/completions", headers=headers, prompt="Once", max_tokens=2)
        assert span.parent is None

    def test_a_request_that_its_client_left_ends_with_a_span(
        self, http: httpx.Client, spans: InMemorySpanExporter
    ) -> None:
        body = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        wait_for(lambda: bool(spans.get_finished_spans()))
        (span,) = spans.get_finished_spans()
        found = dict(span.attributes or {})
        assert found["error.type"] == "aborted"
        assert found["gen_ai.response.finish_reasons"] == ("abort",)


class TestSettings:
    def test_nothing_is_wanted_until_a_collector_is_named(self) -> None:
        assert not wanted({})
        assert not wanted({ENDPOINT: ""})
        assert wanted({ENDPOINT: "http://127.0.0.1:4318"})
        assert wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"})

    @pytest.mark.parametrize(
        ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
    )
    def test_it_can_be_switched_off(self, name: str, value: str) -> None:
        assert not wanted({ENDPOINT: "http://127.0.0.1:4318", name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "zipkin")],
    )
    def test_what_is_not_supported_is_refused_by_name(self, name: str, value: str) -> None:
        with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
            wanted({ENDPOINT: "http://127.0.0.1:4318", name: value})

    def test_without_the_extra_the_server_does_not_start_and_says_what_to_install(self) -> None:
        (declared,) = core_telemetry()
        code = (
            "import sys; sys.modules['opentelemetry'] = None\n"
            "from core.errors import ConfigError\n"
            "from plugins.tracing import core_telemetry\n"
            "try: core_telemetry()[0].start()\n"
            "except ConfigError as error: print(error, error.setting)\n"
        )
        environment = os.environ | {ENDPOINT: "http://127.0.0.1:4318"}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert 'pip install "core[tracing]"' in result.stdout
        assert result.stdout.endswith(f"{ENDPOINT}\n")
        assert declared.name == "opentelemetry"


class TestServer:
    def test_spans_reach_the_collector_that_the_environment_names(
        self, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with collector() as (url, received):
            monkeypatch.setenv(ENDPOINT, url)
            monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            with server_process(tiny_model("llama")) as running:
                body = {"prompt": SECRET, "max_tokens": 3, "ignore_eos": True}
                httpx.post(f"{running.url}/v1/completions", json=body, headers=PARENT).raise_for_status()
                wait_for(lambda: bool(received))
                modules = Path(f"/proc/{running.process.pid}/maps").read_text()
        (request,) = received
        (resource,) = request.resource_spans
        named = {each.key: each.value.string_value for each in resource.resource.attributes}
        assert named["service.name"] == "llm"
        (span,) = resource.scope_spans[0].spans
        assert span.trace_id.hex() == TRACE_ID
        assert span.parent_span_id.hex() == PARENT_ID
        assert span.name == f"text_completion {NAME}"
        assert "libtorch" not in modules


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector of traces on loopback: its address, and what has been sent to it."""
    received: list[ExportTraceServiceRequest] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(
                ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Collect) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", received
        finally:
            listening.shutdown()
            thread.join()
