"""Load on a server with /v1/completions: Poisson arrivals, streamed answers, and the percentiles of what they took.

    python serve_load.py --port 8000 --model m --rates 2,8

Prompts are token ids, 32 to 512 of them; every answer is 64 tokens long and ignores the end of the sequence. Time to
first token runs from the request to the first streamed piece, time per output token from there to the last piece.
Prints one line of JSON a rate.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import client
import workload

NEW_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """When one request was sent, and when its first and last piece came, in seconds of one clock."""

    sent: float
    first: float
    last: float
    tokens: int

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.first - self.sent)

    @property
    def tpot_ms(self) -> float:
        return 1e3 * (self.last - self.first) / (self.tokens - 1)


def percentile(values: list[float], percent: float) -> float:
    """Interpolated between the two nearest values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def is_piece(event: dict[str, Any], started: bool) -> bool:
    """Whether the event brings a part of the answer. An empty one before the first token is an announcement."""
    choices = event.get("choices") or []
    if not choices or choices[0].get("text") is None:
        return False
    return started or choices[0]["text"] != "" or choices[0].get("finish_reason") is not None


async def ask(port: int, model: str, prompt: list[int], num_new: int) -> Answer:
    """Send one request and read its answer. Raises ServerError, OSError, ValueError."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": num_new, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    sent = time.perf_counter()
    times: list[float] = []
    usage: dict[str, Any] = {}
    async for event in client.events(port, "/v1/completions", body):
        if event.get("error"):
            raise client.ServerError(str(event["error"])[:200])
        if is_piece(event, bool(times)):
            times.append(time.perf_counter())
        usage = event.get("usage") or usage
    if not times or usage.get("completion_tokens", len(times)) != num_new:
        raise ValueError(f"{usage.get('completion_tokens', len(times))} tokens instead of {num_new}")
    return Answer(sent, times[0], times[-1], num_new)


async def at_rate(port: int, model: str, rate: float, requests: int) -> dict[str, Any]:
    """The figures of one rate. Requests that fail are counted apart."""
    prompts = workload.served(requests, rate)
    start = time.perf_counter()
    tasks: list[asyncio.Task[Answer]] = []
    for prompt, arrival in zip(prompts, workload.arrivals(requests, rate), strict=True):
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(port, model, prompt, NEW_TOKENS)))
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    answers = [one for one in ended if isinstance(one, Answer)]
    failed = [one for one in ended if isinstance(one, BaseException)]
    figures: dict[str, Any] = {"rate": rate, "requests": requests, "failed": len(failed)}
    if failed:
        figures["error"] = repr(failed[0])[:300]
    if answers:
        seconds = max(one.last for one in answers) - start
        figures["out_tok_s"] = round(sum(one.tokens for one in answers) / seconds, 1)
        for name in ("ttft", "tpot"):
            values: list[float] = [getattr(one, f"{name}_ms") for one in answers]
            for percent in (50, 99):
                figures[f"{name}_p{percent}_ms"] = round(percentile(values, percent), 2)
    return figures


async def load(port: int, model: str, rates: list[float], requests: int) -> list[dict[str, Any]]:
    """The figures of each rate, one after the other, after two requests that count for nothing."""
    for warm_up in ([300, 400, 500], [301, 401]):
        await ask(port, model, warm_up, 8)
    return [await at_rate(port, model, rate, requests) for rate in rates]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8000, help="on this machine [default: 8000]")
    parser.add_argument("--model", default="m", help="name of the served model [default: m]")
    parser.add_argument("--rates", default="2,8", help="requests a second [default: 2,8]")
    parser.add_argument("--requests", type=int, default=32, help="for each rate [default: 32]")
    given = parser.parse_args()
    rates = [float(rate) for rate in given.rates.split(",")]
    for figures in asyncio.run(load(given.port, given.model, rates, given.requests)):
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
