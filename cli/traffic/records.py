"""What became of each request, and the figures of all.

A time to first token, and that of a whole request, begin when the request was due: in a run of a given rate
that is the moment drawn for it, so that a server (or this client) that falls behind is not flattered.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cli.measure import summary
from cli.traffic.settings import LIMITS


@dataclass(slots=True)
class Record:
    """One request. Times are seconds since the run began.

    due         when it was to be sent, sent: when it was, ended: when its answer had ended
    pieces      when each piece of text came; one may hold several tokens
    error       kind of what went wrong, None when nothing did; detail: the words for it
    """

    due: float
    sent: float = 0.0
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list[float])
    num_prompt: int | None = None
    num_output: int = 0
    error: str | None = None
    detail: str = ""

    @property
    def ttft(self) -> float | None:
        return self.pieces[0] - self.due if self.pieces else None

    @property
    def tpot(self) -> float | None:
        """Mean time between tokens after the first; None for an answer of one."""
        gaps = self.num_output - 1
        return (self.pieces[-1] - self.pieces[0]) / gaps if self.pieces and gaps > 0 else None

    @property
    def e2e(self) -> float:
        return self.ended - self.due

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [later - earlier for earlier, later in pairwise(self.pieces)]

    def as_dict(self) -> dict[str, Any]:
        times = {name: getattr(self, name) for name in LIMITS}
        return {
            "due_s": self.due,
            "sent_s": self.sent,
            "ended_s": self.ended,
            **{f"{name}_ms": None if value is None else value * 1e3 for name, value in times.items()},
            "prompt_tokens": self.num_prompt,
            "output_tokens": self.num_output,
            "error": self.error,
            "detail": self.detail or None,
        }


def keeps(record: Record, limits: dict[str, float]) -> bool:
    """Whether the request was answered within every limit; what an answer has not got is within."""
    times = {name: getattr(record, name) for name in limits}
    return record.error is None and all(
        times[name] is None or times[name] * 1e3 <= limit for name, limit in limits.items()
    )


def figures_of(records: Sequence[Record], limits: dict[str, float]) -> dict[str, Any]:
    """Counts, rates and percentiles of a run. Rates are over the time from its start to the last answer's end."""
    done = [record for record in records if record.error is None]
    seconds = max((record.ended for record in records), default=0.0)
    prompt_tokens = sum(record.num_prompt or 0 for record in done)
    output_tokens = sum(record.num_output for record in done)
    found: dict[str, Any] = {
        "requests": len(records),
        "completed": len(done),
        "failed": len(records) - len(done),
        "errors": dict(Counter(record.error for record in records if record.error is not None)),
        "seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_per_second": _rate(len(done), seconds),
        "output_tokens_per_second": _rate(output_tokens, seconds),
        "total_tokens_per_second": _rate(prompt_tokens + output_tokens, seconds),
        "most_requests_at_once": _most_at_once(records),
    }
    if limits:
        kept = sum(keeps(record, limits) for record in records)
        found |= {"slo_ms": limits, "goodput_requests_per_second": _rate(kept, seconds)}
        found["goodput_percent"] = 100 * kept / len(records)
    return found | _latencies(done)


def _latencies(done: Sequence[Record]) -> dict[str, Any]:
    first = [time for record in done if (time := record.ttft) is not None]
    per_token = [time for record in done if (time := record.tpot) is not None]
    return {
        "time_to_first_token_ms": summary(first),
        "time_per_output_token_ms": summary(per_token),
        "inter_token_latency_ms": summary([gap for record in done for gap in record.gaps]),
        "request_latency_ms": summary([record.e2e for record in done]),
        "sent_late_ms": summary([record.sent - record.due for record in done]),
    }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _most_at_once(records: Sequence[Record]) -> int:
    """Requests that were sent and had not ended."""
    changes = sorted([(r.sent, 1) for r in records] + [(r.ended, -1) for r in records])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
