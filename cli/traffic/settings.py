"""What `llm bench serve` can be told: whom to ask, what, and when. Checked before anything is sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli.failures import UsageError
from cli.options import Table

APIS = {"completions": "/completions", "chat": "/chat/completions"}
CONCURRENCY = 32
LENGTH = "128"
LIMITS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server. Checked when built; raises UsageError naming the option."""

    base_url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api: str = "completions"
    temperature: float = 0.0
    ignore_eos: bool = True
    timeout: float = 600.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"--base-url is {self.base_url!r}; write it like http://127.0.0.1:8000/v1")
        if self.api not in APIS:
            raise UsageError(f"--api is {self.api!r}; accepted: {', '.join(APIS)}")
        if not 0 < self.timeout < float("inf"):
            raise UsageError(f"--timeout is {self.timeout}; seconds above 0 are accepted")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"--temperature is {self.temperature}; 0 to 100 is accepted")

    @property
    def root(self) -> str:
        """The address under which /models is; that of a server alone gets /v1."""
        bare = self.base_url.rstrip("/")
        return bare if urlsplit(bare).path else f"{bare}/v1"


TARGET = Table(
    keyword="target",
    panel="Server",
    source=Target,
    defaults={"model": "the first that the server lists"},
    help={
        "base_url": "Address of a server with OpenAI's API, with or without /v1.",
        "model": "Model to ask.",
        "api": "completions or chat.",
        "temperature": "Sampling temperature; 0 takes the likeliest token.",
        "ignore_eos": "Ask for answers of full length; for servers that refuse the field: --no-ignore-eos.",
        "timeout": "Seconds after which an unfinished request is given up, and counted as failed.",
    },
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Checked when built; raises UsageError naming the option.

    request_rate  requests per second; None: a closed loop, whose every answer makes room for the next request
    burstiness    shape of the gamma distribution of the times between requests: 1 is Poisson, less is burstier
    """

    num_requests: int = 100
    concurrency: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    warmup: int = 2
    slo: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("num_requests", 1), ("concurrency", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; at least {least} is accepted")
        if self.request_rate is not None and not self.request_rate > 0:
            raise UsageError(
                f"--request-rate is {self.request_rate}; above 0 is accepted, and inf for all at once"
            )
        if not 0 < self.burstiness < math.inf:
            raise UsageError(f"--burstiness is {self.burstiness}; above 0 is accepted")
        if self.request_rate is None and self.burstiness != 1:
            raise UsageError("--burstiness needs --request-rate: a closed loop has no times between requests")
        limits_of(self.slo)

    @property
    def at_once(self) -> int | None:
        """Requests under way at most; None where nothing limits them."""
        if self.request_rate is not None:
            return self.concurrency
        return self.concurrency or CONCURRENCY


LOAD = Table(
    keyword="load",
    panel="Load",
    source=Load,
    defaults={
        "concurrency": f"{CONCURRENCY}; with --request-rate, any number",
        "request_rate": "as the answers come",
    },
    help={
        "num_requests": "Requests to measure.",
        "concurrency": "Requests under way at once.",
        "request_rate": "Requests per second, at random moments, answered or not; inf: all at once. Times then count "
        "from the moment that was drawn, not from the sending.",
        "burstiness": "Shape of the gamma distribution of the times between requests: 1 is Poisson, less is "
        "burstier, more is steadier.",
        "warmup": "Requests to send before, which are not counted; they also tell how long the server's tokens are.",
        "slo": "Limit in milliseconds as NAME:LIMIT, of ttft, tpot or e2e: reports the rate of requests that keep "
        "all limits; may be repeated.",
    },
)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Checked when built; raises UsageError naming the option.

    input_len, output_len  tokens, as a number or as LOW:HIGH, between which each request draws evenly
    vocab_size             prompts are token ids below this, whose number is exact
    """

    dataset: Path | None = None
    input_len: str | None = None
    output_len: str | None = None
    vocab_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.input_range, self.output_range
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UsageError(f"--vocab-size is {self.vocab_size}; at least 1 is accepted")
        for name, value in (("--input-len", self.input_len), ("--vocab-size", self.vocab_size)):
            if self.dataset is not None and value is not None:
                raise UsageError(
                    f"{name} and --dataset are both given; the dataset's prompts are what they are"
                )

    @property
    def input_range(self) -> tuple[int, int]:
        return _range("--input-len", self.input_len or LENGTH)

    @property
    def output_range(self) -> tuple[int, int]:
        return _range("--output-len", self.output_len or LENGTH)


TEXTS = Table(
    keyword="texts",
    panel="Requests",
    source=Texts,
    defaults={
        "dataset": "random words",
        "input_len": LENGTH,
        "output_len": f"{LENGTH}; of a dataset, its own",
        "vocab_size": "prompts are text",
    },
    help={
        "input_len": "Tokens of text per prompt, or LOW:HIGH; a chat template adds its own.",
        "output_len": "Tokens to generate per prompt at most, or LOW:HIGH.",
        "dataset": "ShareGPT-format JSON file to take prompts and answer lengths from.",
        "vocab_size": "Send random token ids below this instead of text; for --api completions.",
        "seed": "Of prompts, lengths and moments; the same seed makes the same requests.",
    },
)


def limits_of(given: Sequence[str]) -> dict[str, float]:
    """ttft:500 as {"ttft": 500.0}, in milliseconds. Raises UsageError."""
    limits: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = 0
        if name not in LIMITS or not 0 < limits[name] < float("inf"):
            raise UsageError(
                f"--slo is {text!r}; write NAME:MILLISECONDS, like ttft:500, with {', '.join(LIMITS)}"
            )
    return limits


def _range(option: str, text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    try:
        found = int(low), int(high or low)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise UsageError(f"{option} is {text!r}; write a number of tokens, or LOW:HIGH, from 1 up")
    return found
