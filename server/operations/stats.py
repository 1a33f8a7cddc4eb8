"""GET /stats: how each model does right now, for the web page and other tools. GET /load: how much is under way."""

from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core import __version__
from server.errors import JSON
from server.operations.answers import Load, Stats
from server.operations.meter import NOTHING_YET, Meter
from server.routes import Routes
from server.state import Served, State

INFO = (
    "architecture",
    "platform",
    "device",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "max_model_len",
    "max_num_seqs",
    "num_kv_tokens",
    "kv_cache_bytes",
    "sampling_defaults",
    "ledger",
)


def stats_routes(state: State) -> Routes:
    routes = Routes()

    @routes.get("/stats", answer=Stats)
    async def stats(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        models = [model_stats(served, state.metrics.meter(name)) for name, served in state.models.items()]
        uptime = time() - min(served.created for served in state.models.values())
        return JSON(
            {"version": __version__, "uptime": uptime, "default": state.default.name, "models": models}
        )

    @routes.get("/load", answer=Load)
    async def load(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON({"server_load": sum(served.engine.num_unfinished for served in state.models.values())})

    return routes


def model_stats(served: Served, meter: Meter) -> dict[str, Any]:
    """One model. Nothing is asked of its engine, which may hang."""
    engine, window = served.engine, meter.window
    latest = engine.latest or NOTHING_YET
    facts = {name: getattr(engine.info, name) for name in INFO}
    queries = meter.prefix_cache_queries
    tokenizer = engine.intake.tokenizer
    return facts | {
        "name": served.name,
        "task": "generate" if engine.info.pooling is None else engine.info.pooling.task,
        "chat": engine.info.pooling is None and tokenizer is not None and tokenizer.chat_template is not None,
        "alive": engine.is_alive,
        "silent_for": engine.silent_for,
        "restarts": served.num_restarts,
        "num_running": latest.num_running,
        "num_waiting": latest.num_waiting,
        "num_unfinished": engine.num_unfinished,
        "num_waiting_tokens": engine.room.num_waiting_tokens,
        "kv_cache_usage": latest.kv_cache_usage,
        "prefix_cache_hit_rate": meter.prefix_cache_hits / queries if queries else None,
        "num_preemptions": meter.num_preemptions,
        "prompt_tokens": meter.prompt_tokens,
        "generation_tokens": meter.generation_tokens,
        "throughput": {f"last_{seconds}_s": window.per_second(seconds) for seconds in (10, 60)},
        "latency": window.latency(),
        "finished": meter.finished,
    }
