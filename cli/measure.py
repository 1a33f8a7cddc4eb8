"""Driving an engine with a set of requests, and what the clock says of it.

All requests are there from the start, so a time to first token includes waiting for a place in a step.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.failures import CommandError
from cli.workload import Prompt
from core.clock import HOST_STAGES, StageClock
from core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from core.llm import LLM

PERCENTILES = (50, 90, 95, 99)


@dataclass(slots=True)
class Timing:
    """Seconds, from the moment all requests were there, at which each token of one request came."""

    num_prompt: int
    tokens: list[float] = field(default_factory=list[float])

    @property
    def first(self) -> float:
        return self.tokens[0]

    @property
    def per_token(self) -> float | None:
        """Mean time between tokens after the first; None for an answer of one token."""
        gaps = len(self.tokens) - 1
        return (self.tokens[-1] - self.tokens[0]) / gaps if gaps else None


@dataclass(frozen=True)
class Run:
    """What one set of requests took, in seconds."""

    seconds: float
    timings: list[Timing]


def measure(llm: "LLM", prompts: Sequence[Prompt], *, temperature: float, name: str) -> Run:
    """Run all prompts at once, text included when there is a tokenizer.

    Raises CommandError when a request ends in error.
    """
    from core.engine.delivery import Delivery
    from core.engine.intake import Intake

    tokenizer = None if llm.info.tokenizer_path is None else llm.get_tokenizer()
    intake, delivery = Intake(llm.info, tokenizer), Delivery(tokenizer)
    timings: dict[str, Timing] = {}
    begin = time.perf_counter()
    for index, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=prompt.num_output, ignore_eos=True, temperature=temperature)
        request = intake.request(prompt.token_ids, params, request_id=f"{name}-{index}")
        timings[request.request_id] = Timing(len(prompt.token_ids))
        delivery.register(request)
        llm.engine.add(request)
    while llm.engine.has_work:
        deltas = llm.engine.step()
        delivery.apply(deltas)
        now = time.perf_counter() - begin
        for delta in deltas:
            if delta.error is not None:
                raise CommandError(f"a request failed: {delta.error}")
            timings[delta.request_id].tokens += [now] * len(delta.token_ids)
    return Run(time.perf_counter() - begin, list(timings.values()))


class Stages:
    """The stages of an engine's steps from now on."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self._seconds, self._steps = dict(clock.seconds), clock.num_steps

    def figures(self) -> dict[str, Any]:
        """Microseconds of each stage in an average step, and the share that is work of the host."""
        steps = self._clock.num_steps - self._steps
        spent = {stage: seconds - self._seconds[stage] for stage, seconds in self._clock.seconds.items()}
        host = sum(spent[stage] for stage in HOST_STAGES)
        return {
            "steps": steps,
            **{f"{stage}_us_per_step": seconds / steps * 1e6 for stage, seconds in spent.items()},
            "host_percent": 100 * host / sum(spent.values()),
        }


def throughput(run: Run) -> dict[str, Any]:
    """Rates of a run, and percentiles over its requests."""
    prompt_tokens = sum(timing.num_prompt for timing in run.timings)
    output_tokens = sum(len(timing.tokens) for timing in run.timings)
    return {
        "requests": len(run.timings),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "seconds": run.seconds,
        "requests_per_second": len(run.timings) / run.seconds,
        "output_tokens_per_second": output_tokens / run.seconds,
        "total_tokens_per_second": (prompt_tokens + output_tokens) / run.seconds,
        **latencies([run]),
    }


def latencies(runs: Sequence[Run]) -> dict[str, Any]:
    """Percentiles over the requests of all runs, in milliseconds."""
    timings = [timing for run in runs for timing in run.timings]
    per_token = [timing.per_token for timing in timings if timing.per_token is not None]
    return {
        "time_to_first_token_ms": summary([timing.first for timing in timings]),
        "time_per_output_token_ms": summary(per_token),
        "request_latency_ms": summary([timing.tokens[-1] for timing in timings]),
    }


def summary(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    found = {f"p{percent}": percentile(ordered, percent) * 1e3 for percent in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered) * 1e3, **found}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, interpolated between the two nearest."""
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
