"""What the routes answer that tell how the server does."""

from typing import Literal

from pydantic import RootModel

from server.answers import Answer
from server.openai.answers import ChatCompletion, Completion
from server.pooling.answers import Classifications, Embeddings, Ranking, Scores


class Health(Answer):
    status: Literal["ok"]


class Readiness(Answer):
    status: Literal["ready"]


class Version(Answer):
    version: str


class Invoked(RootModel[ChatCompletion | Completion | Embeddings | Classifications | Scores | Ranking]):
    """What the route answers that an invocation is for."""


class Ping(Answer):
    status: Literal["ok"]


class Load(Answer):
    server_load: int


class Rates(Answer):
    """Per second."""

    prompt_tokens: float
    generation_tokens: float
    requests: float


class Throughput(Answer):
    last_10_s: Rates
    last_60_s: Rates


class Percentiles(Answer):
    """Seconds, of the last minute; null when nothing was measured."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


class Latency(Answer):
    time_to_first_token: Percentiles
    inter_token: Percentiles
    end_to_end: Percentiles


class Finished(Answer):
    """Requests that are over, by why they ended."""

    stop: int
    length: int
    abort: int
    error: int


class ModelStats(Answer):
    """One model. Counts are since the server started; parts are from 0 to 1; what nothing is known of is null."""

    name: str
    task: str
    chat: bool
    alive: bool
    silent_for: float
    restarts: int
    architecture: str
    platform: str
    device: str
    dtype: str
    quantization: str
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    num_kv_tokens: int
    kv_cache_bytes: int
    num_running: int
    num_waiting: int
    num_unfinished: int
    num_waiting_tokens: int
    kv_cache_usage: float
    prefix_cache_hit_rate: float | None
    num_preemptions: int
    prompt_tokens: int
    generation_tokens: int
    throughput: Throughput
    latency: Latency
    finished: Finished
    sampling_defaults: dict[str, object]
    ledger: list[dict[str, object]]


class Stats(Answer):
    version: str
    uptime: float
    default: str
    models: list[ModelStats]
