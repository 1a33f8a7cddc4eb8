"""What is measured of one served model. It outlives the engines that serve the model one after another."""

from core.contracts.telemetry import Observer
from core.engine.engine import EngineInfo, EngineStatistics
from core.engine.request import Request
from core.outputs import RequestOutput
from server.operations.histogram import Histogram, one_two_five
from server.operations.window import Window

REASONS = ("error", "abort", "length", "stop")
"""Why a request ended. Of several answers' reasons the first in this order is the request's."""

ANSWERED = ("length", "stop")

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120),
    *(240, 480, 960, 1920, 7680),
)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES = (1, 2, 5, 10, 20)

NOTHING_YET = EngineStatistics(
    num_running=0,
    num_waiting=0,
    kv_cache_usage=0.0,
    num_preemptions=0,
    prefix_cache_queries=0,
    prefix_cache_hits=0,
    prompt_tokens=0,
    generation_tokens=0,
    num_steps=0,
    num_step_tokens=0,
)
"""How things stand with an engine that has said nothing yet."""


class Meter:
    """Counts since the server started, histograms, and the last minute. Buckets are those of vLLM's dashboards."""

    def __init__(self, max_model_len: int) -> None:
        tokens = one_two_five(max_model_len)
        self.prompt_tokens = self.generation_tokens = 0
        self.num_preemptions = self.prefix_cache_queries = self.prefix_cache_hits = 0
        self.finished: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.time_to_first_token = Histogram(FIRST_TOKEN_S)
        self.inter_token_latency = Histogram(TOKEN_S)
        self.time_per_output_token = Histogram(TOKEN_S)
        self.e2e_latency = Histogram(REQUEST_S)
        self.queue_time = Histogram(REQUEST_S)
        self.inference_time = Histogram(REQUEST_S)
        self.prefill_time = Histogram(REQUEST_S)
        self.decode_time = Histogram(REQUEST_S)
        self.request_prompt_tokens = Histogram(tokens)
        self.request_generation_tokens = Histogram(tokens)
        self.longest_answer = Histogram(tokens)
        self.params_n = Histogram(CHOICES)
        self.params_max_tokens = Histogram(tokens)
        self.step_tokens = Histogram(STEP_TOKENS)
        self.window = Window()


class EngineMeter(Observer):
    """Feeds a meter with what one engine does."""

    def __init__(self, meter: Meter, info: EngineInfo) -> None:
        self._meter = meter
        self._info = info
        self._last = NOTHING_YET

    def stepped(self, statistics: EngineStatistics) -> None:
        meter, last, self._last = self._meter, self._last, statistics
        meter.num_preemptions += statistics.num_preemptions - last.num_preemptions
        meter.prefix_cache_queries += statistics.prefix_cache_queries - last.prefix_cache_queries
        meter.prefix_cache_hits += statistics.prefix_cache_hits - last.prefix_cache_hits
        if statistics.num_steps > last.num_steps:
            meter.step_tokens.observe(statistics.num_step_tokens)

    def began(self, request: Request, output: RequestOutput) -> None:
        meter, slot = self._meter, self._meter.window.now
        meter.prompt_tokens += len(request.prompt_token_ids)
        slot.prompt_tokens += len(request.prompt_token_ids)
        times = output.times
        if request.pooling is None and times is not None and times.first_token is not None:
            meter.time_to_first_token.observe(times.first_token - times.arrived)
            slot.ttft.add(times.first_token - times.arrived)

    def grew(self, output: RequestOutput, num_tokens: int, interval: float | None) -> None:
        meter, slot = self._meter, self._meter.window.now
        meter.generation_tokens += num_tokens
        slot.generation_tokens += num_tokens
        if interval is not None:
            meter.inter_token_latency.observe(interval)
            slot.inter_token.add(interval)

    def ended(self, request: Request, output: RequestOutput) -> None:
        reason = reason_of(output)
        self._meter.finished[reason] += 1
        self._meter.window.now.requests += 1
        if reason in ANSWERED:
            self._note_times(output)
            self._meter.request_prompt_tokens.observe(len(request.prompt_token_ids))
            if request.pooling is None:
                self._note_generation(request, output)

    def _note_times(self, output: RequestOutput) -> None:
        times, meter = output.times, self._meter
        if times is None or times.admitted is None or times.first_token is None or times.last_token is None:
            return
        meter.e2e_latency.observe(times.last_token - times.arrived)
        meter.window.now.end_to_end.add(times.last_token - times.arrived)
        meter.queue_time.observe(times.admitted - times.arrived)
        meter.inference_time.observe(times.last_token - times.admitted)
        meter.prefill_time.observe(times.first_token - times.admitted)
        meter.decode_time.observe(times.last_token - times.first_token)
        longest = max(len(answer.token_ids) for answer in output.outputs)
        if longest > 1:
            meter.time_per_output_token.observe((times.last_token - times.first_token) / (longest - 1))

    def _note_generation(self, request: Request, output: RequestOutput) -> None:
        lengths = [len(answer.token_ids) for answer in output.outputs]
        room = self._info.max_model_len - len(request.prompt_token_ids)
        self._meter.request_generation_tokens.observe(sum(lengths))
        self._meter.longest_answer.observe(max(lengths))
        self._meter.params_n.observe(request.params.n)
        self._meter.params_max_tokens.observe(request.params.max_tokens or room)


def reason_of(output: RequestOutput) -> str:
    """Why a request ended, as one of REASONS."""
    if output.error is not None:
        return "error"
    reasons = {answer.finish_reason for answer in output.outputs}
    return next((reason for reason in REASONS if reason in reasons), "abort")
