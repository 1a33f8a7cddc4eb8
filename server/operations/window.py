"""What happened in the last minute, in memory that does not grow with it: one slot a second, filled in turn.

Latencies are kept as a sketch: how many fell into each of some buckets, every one 4 % wider than the one before, so
that a percentile is right to 2 %. Source: DDSketch, Masson, Rim and Lee, 2019.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil, exp, log
from time import monotonic

SECONDS = 60
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

_WIDTH = log(1.04)
_SMALLEST = 1e-6


class Sketch:
    """Durations in seconds, as counts by bucket. Shorter ones than a microsecond count as one."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        bucket = ceil(log(max(seconds, _SMALLEST)) / _WIDTH)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1


class Slot:
    """One second. Tokens and finished requests are counts."""

    __slots__ = (
        "end_to_end",
        "generation_tokens",
        "inter_token",
        "prompt_tokens",
        "requests",
        "second",
        "ttft",
    )

    def __init__(self, second: int) -> None:
        self.second = second
        self.prompt_tokens = self.generation_tokens = self.requests = 0
        self.ttft, self.inter_token, self.end_to_end = Sketch(), Sketch(), Sketch()


class Window:
    """The last minute. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._slots = [Slot(-1) for _ in range(SECONDS + 1)]

    @property
    def now(self) -> Slot:
        """Where to count what happens now."""
        second = int(self._clock())
        place = second % len(self._slots)
        slot = self._slots[place]
        if slot.second != second:
            slot = self._slots[place] = Slot(second)
        return slot

    def per_second(self, seconds: int) -> dict[str, float]:
        """Means over so many whole seconds before this one, or as many as there were."""
        now = int(self._clock())
        slots = [slot for slot in self._slots if now - seconds <= slot.second < now]
        span = min(seconds, max(1.0, now - self._began))
        return {
            name: sum(getattr(slot, name) for slot in slots) / span
            for name in ("prompt_tokens", "generation_tokens", "requests")
        }

    def latency(self) -> dict[str, dict[str, float | None]]:
        """Percentiles of the last minute, in seconds."""
        slots = list(self._recent())
        return {
            "time_to_first_token": percentiles(slot.ttft for slot in slots),
            "inter_token": percentiles(slot.inter_token for slot in slots),
            "end_to_end": percentiles(slot.end_to_end for slot in slots),
        }

    def _recent(self) -> Iterator[Slot]:
        now = int(self._clock())
        return (slot for slot in self._slots if now - SECONDS < slot.second <= now)


def percentiles(sketches: Iterator[Sketch]) -> dict[str, float | None]:
    """How many values there were, and what half, 90 % and 99 % of them did not exceed; None when there were none."""
    counts: Counter[int] = Counter()
    for sketch in sketches:
        counts.update(sketch.counts)
    total = counts.total()
    ordered = sorted(counts.items())
    found: dict[str, float | None] = {"count": total}
    for name, quantile in QUANTILES.items():
        left = ceil(quantile * total)
        value = None
        for bucket, count in ordered:
            left -= count
            if left <= 0:
                value = exp((bucket - 0.5) * _WIDTH)  # the middle of its bucket
                break
        found[name] = value if total else None
    return found
