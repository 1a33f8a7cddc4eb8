"""One span a request, made when it is over: from its arrival to its last token, below the span that its client sent.

Names are those of OpenTelemetry's semantic conventions for generative AI, 1.37, and `gen_ai.latency.*` vLLM's.
"""

from time import monotonic_ns, time_ns

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from core.contracts.telemetry import Observer
from core.engine.engine import EngineInfo
from core.engine.request import Request
from core.outputs import RequestOutput, RequestTimes

Attributes = dict[str, AttributeValue]

PROVIDER = "core"


class SpanObserver(Observer):
    """The spans of one engine's requests. model  what clients call it"""

    def __init__(self, tracer: Tracer, model: str, info: EngineInfo) -> None:
        self._tracer = tracer
        self._model = model
        self._info = info
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, request: Request, output: RequestOutput) -> None:
        times = output.times
        if times is None:
            return
        behind = time_ns() - monotonic_ns()  # of the wall clock, which may have been set since
        operation = self._operation(request)
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagator.extract(request.trace),
            kind=SpanKind.SERVER,
            start_time=_ns(times.arrived) + behind,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": self._model,
            },
        )
        if span.is_recording():
            span.set_attributes(asked(request) | answered(self._model, output) | lasted(times))
            for name, at in (("admitted", times.admitted), ("first token", times.first_token)):
                if at is not None:
                    span.add_event(name, timestamp=_ns(at) + behind)
            _note_failure(span, output)
        done = output.finished and output.error is None and times.last_token is not None
        span.end((_ns(times.last_token) if done and times.last_token else monotonic_ns()) + behind)

    def _operation(self, request: Request) -> str:
        if request.pooling is not None:
            task = "embed" if self._info.pooling is None else self._info.pooling.task
            return "embeddings" if task == "embed" else task
        return "chat" if request.is_chat else "text_completion"


def asked(request: Request) -> Attributes:
    """What was asked for, without its text."""
    params = request.params
    found: Attributes = {"gen_ai.usage.input_tokens": len(request.prompt_token_ids)}
    if request.pooling is not None:
        return found
    found |= {
        "gen_ai.output.type": "text",
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
    }
    optional = {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n if params.n > 1 else None,
        "gen_ai.request.top_k": params.top_k if params.top_k > 0 else None,
    }
    return found | {name: value for name, value in optional.items() if value is not None}


def answered(model: str, output: RequestOutput) -> Attributes:
    """What came of it, without its text."""
    return {
        "gen_ai.response.id": output.request_id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [answer.finish_reason or "" for answer in output.outputs],
        "gen_ai.usage.output_tokens": sum(len(answer.token_ids) for answer in output.outputs),
        "gen_ai.usage.cache_read.input_tokens": output.num_cached_tokens,
    }


def lasted(times: RequestTimes) -> Attributes:
    """Its phases, as far as it came, in seconds."""
    found: Attributes = {}
    if times.admitted is not None:
        found["gen_ai.latency.time_in_queue"] = times.admitted - times.arrived
    if times.first_token is not None and times.last_token is not None:
        found["gen_ai.latency.time_to_first_token"] = times.first_token - times.arrived
        found["gen_ai.latency.time_in_model_decode"] = times.last_token - times.first_token
        found["gen_ai.latency.e2e"] = times.last_token - times.arrived
        if times.admitted is not None:
            found["gen_ai.latency.time_in_model_prefill"] = times.first_token - times.admitted
    return found


def _note_failure(span: Span, output: RequestOutput) -> None:
    if output.error is not None:
        span.set_attribute("error.type", "generation_failed")
        span.set_status(Status(StatusCode.ERROR))
    elif any(answer.finish_reason == "abort" for answer in output.outputs):
        span.set_attribute("error.type", "aborted")


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
