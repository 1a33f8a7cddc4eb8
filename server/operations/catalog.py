"""Every metric, in two tables, from which come both names, what is exported, and docs/metrics.md.

The names behind the prefixes, the labels and the buckets are vLLM's where it has such a metric.
"""

import psutil

from core import __version__
from server.operations.http import HTTPCounts
from server.operations.metric import Metric, Reading, Values


def _cache_config(reading: Reading) -> Values:
    info = reading.served.engine.info
    blocks = str(info.num_kv_tokens // info.block_size)
    return {(str(info.block_size), info.kv_cache_dtype, str(info.prefix_caching), blocks): 1.0}


def _resident_memory(reading: Reading) -> Values:
    try:
        return float(psutil.Process(reading.served.engine.pid).memory_info().rss)
    except psutil.Error:
        return {}


METRICS: tuple[Metric[Reading], ...] = (
    Metric(
        "num_requests_running",
        "gauge",
        "Answers in the engine's running batch, n of a request counted one by one",
        lambda r: r.latest.num_running,
    ),
    Metric(
        "num_requests_waiting",
        "gauge",
        "Answers that wait in the engine for a place in the batch",
        lambda r: r.latest.num_waiting,
    ),
    Metric(
        "num_requests_unfinished",
        "gauge",
        "Requests that the server has taken and not finished, tokenization included",
        lambda r: r.served.engine.num_unfinished,
        alias=False,
    ),
    Metric(
        "num_waiting_tokens",
        "gauge",
        "Prompt tokens of requests that have no token yet",
        lambda r: r.served.engine.room.num_waiting_tokens,
        alias=False,
    ),
    Metric(
        "kv_cache_usage_perc",
        "gauge",
        "Part of the KV cache that is in use, 0 to 1",
        lambda r: r.latest.kv_cache_usage,
    ),
    Metric(
        "cache_config_info",
        "gauge",
        "How the KV cache is laid out, in its labels; always 1",
        _cache_config,
        labels=("block_size", "cache_dtype", "enable_prefix_caching", "num_gpu_blocks"),
    ),
    Metric(
        "lora_requests_info",
        "gauge",
        "Adapters in use, in its labels; none can be loaded so far",
        lambda r: {("0", "", ""): r.served.created},
        labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
    Metric(
        "prompt_tokens",
        "counter",
        "Prompt tokens of requests that got their first token",
        lambda r: r.meter.prompt_tokens,
    ),
    Metric("generation_tokens", "counter", "Tokens generated", lambda r: r.meter.generation_tokens),
    Metric(
        "request_success",
        "counter",
        "Requests that are over, by why they ended: stop, length, abort (client or deadline), error",
        lambda r: {(reason,): count for reason, count in r.meter.finished.items()},
        labels=("finished_reason",),
    ),
    Metric(
        "num_preemptions",
        "counter",
        "Answers that were put back to wait because no block was free",
        lambda r: r.meter.num_preemptions,
    ),
    Metric(
        "prefix_cache_queries",
        "counter",
        "Prompt tokens that were looked for in the prefix cache",
        lambda r: r.meter.prefix_cache_queries,
    ),
    Metric(
        "prefix_cache_hits",
        "counter",
        "Prompt tokens that were found in the prefix cache",
        lambda r: r.meter.prefix_cache_hits,
    ),
    Metric(
        "time_to_first_token_seconds",
        "histogram",
        "From a request's arrival to its first token",
        lambda r: r.meter.time_to_first_token,
    ),
    Metric(
        "inter_token_latency_seconds",
        "histogram",
        "Between two growths of an answer",
        lambda r: r.meter.inter_token_latency,
    ),
    Metric(
        "request_time_per_output_token_seconds",
        "histogram",
        "Per request: time per token of its longest answer, after the first token",
        lambda r: r.meter.time_per_output_token,
    ),
    Metric(
        "e2e_request_latency_seconds",
        "histogram",
        "From a request's arrival to its last token",
        lambda r: r.meter.e2e_latency,
    ),
    Metric(
        "request_queue_time_seconds",
        "histogram",
        "From a request's arrival to its first place in a step",
        lambda r: r.meter.queue_time,
    ),
    Metric(
        "request_inference_time_seconds",
        "histogram",
        "From a request's first place in a step to its last token",
        lambda r: r.meter.inference_time,
    ),
    Metric(
        "request_prefill_time_seconds",
        "histogram",
        "From a request's first place in a step to its first token",
        lambda r: r.meter.prefill_time,
    ),
    Metric(
        "request_decode_time_seconds",
        "histogram",
        "From a request's first token to its last",
        lambda r: r.meter.decode_time,
    ),
    Metric(
        "request_prompt_tokens",
        "histogram",
        "Prompt tokens per request",
        lambda r: r.meter.request_prompt_tokens,
    ),
    Metric(
        "request_generation_tokens",
        "histogram",
        "Generated tokens per request, over all its answers",
        lambda r: r.meter.request_generation_tokens,
    ),
    Metric(
        "request_max_num_generation_tokens",
        "histogram",
        "Tokens of a request's longest answer",
        lambda r: r.meter.longest_answer,
    ),
    Metric("request_params_n", "histogram", "Answers that a request asked for", lambda r: r.meter.params_n),
    Metric(
        "request_params_max_tokens",
        "histogram",
        "Tokens that an answer might have had at most",
        lambda r: r.meter.params_max_tokens,
    ),
    Metric("iteration_tokens_total", "histogram", "Tokens computed per step", lambda r: r.meter.step_tokens),
    Metric(
        "engine_up",
        "gauge",
        "1 while the engine lives, else 0",
        lambda r: float(r.served.engine.is_alive),
        alias=False,
    ),
    Metric(
        "engine_silent_seconds",
        "gauge",
        "Since the engine last said something, while it owes an answer",
        lambda r: r.served.engine.silent_for,
        alias=False,
    ),
    Metric(
        "engine_restarts",
        "counter",
        "Times that the engine was started anew",
        lambda r: r.served.num_restarts,
        alias=False,
    ),
    Metric(
        "engine_resident_memory_bytes",
        "gauge",
        "Memory of the engine's process on the host; left out when it is gone",
        _resident_memory,
        alias=False,
    ),
)
"""Of each model that is served."""

FRONT: tuple[Metric[HTTPCounts], ...] = (
    Metric(
        "http_requests",
        "counter",
        "HTTP requests that were answered",
        lambda counts: counts.requests,
        labels=("method", "path", "status"),
        alias=False,
    ),
    Metric(
        "http_request_duration_seconds",
        "histogram",
        "From an HTTP request's arrival to the last byte of its answer",
        lambda counts: counts.durations,
        labels=("method", "path"),
        alias=False,
    ),
    Metric(
        "build_info",
        "gauge",
        "The version of this software, in its label; always 1",
        lambda _: {(__version__,): 1.0},
        labels=("version",),
        alias=False,
    ),
)
"""Of the server."""
