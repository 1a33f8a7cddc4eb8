"""Counts of values by size, as Prometheus keeps them: a list and a sum, without a lock."""

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """bounds  upper ends of the buckets, rising; what is above the last has a bucket of its own"""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper end, how many values are not above it), ending with "+Inf" and all of them."""
        ends = [f"{float(bound)}" for bound in self._bounds] + ["+Inf"]
        total = 0
        rows: list[tuple[str, float]] = []
        for end, count in zip(ends, self._counts, strict=True):
            total += count
            rows.append((end, total))
        return rows


def one_two_five(most: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50 … up to `most`."""
    steps = (base * 10**exponent for exponent in range(len(str(most))) for base in (1, 2, 5))
    return tuple(step for step in steps if step <= most)
