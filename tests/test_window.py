"""The last minute: rates and percentiles, in memory that does not grow."""

import random

import pytest

from server.operations.histogram import Histogram, one_two_five
from server.operations.window import SECONDS, Window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_percentiles_are_right_to_two_percent(clock: Clock) -> None:
    window, draw = Window(clock), random.Random(7)
    values = [draw.lognormvariate(-3, 2) for _ in range(5000)]
    for value in values:
        clock.now += 0.01
        window.now.ttft.add(value)

    found = window.latency()["time_to_first_token"]

    assert found["count"] == 5000
    values.sort()
    for name, rank in (("p50", 2500), ("p90", 4500), ("p99", 4950)):
        assert found[name] == pytest.approx(values[rank - 1], rel=0.021)


def test_nothing_measured_is_null(clock: Clock) -> None:
    assert Window(clock).latency()["end_to_end"] == {"count": 0, "p50": None, "p90": None, "p99": None}


def test_what_is_older_than_a_minute_is_gone(clock: Clock) -> None:
    window = Window(clock)
    window.now.end_to_end.add(1.0)
    clock.now += SECONDS - 1
    assert window.latency()["end_to_end"]["count"] == 1
    clock.now += 1
    assert window.latency()["end_to_end"]["count"] == 0


def test_rates_are_means_over_whole_seconds(clock: Clock) -> None:
    window = Window(clock)
    for _ in range(30):
        window.now.generation_tokens += 50
        clock.now += 1
    assert window.per_second(10)["generation_tokens"] == 50
    assert window.per_second(60)["generation_tokens"] == 50  # of the thirty that there were
    clock.now += 5
    assert window.per_second(10)["generation_tokens"] == 25
    clock.now += 3600
    assert window.per_second(60)["generation_tokens"] == 0


def test_a_day_takes_no_more_memory_than_a_minute(clock: Clock) -> None:
    window = Window(clock)
    for _ in range(10 * SECONDS):
        for exponent in range(-20, 20):
            window.now.inter_token.add(2.0**exponent)
        clock.now += 1
    kept = sum(len(slot.inter_token.counts) for slot in window._slots)
    assert kept <= 40 * (SECONDS + 1)


def test_a_histogram_counts_what_is_not_above_each_bound() -> None:
    histogram = Histogram((1, 5, 10))
    for value in (0.5, 1, 1.5, 10, 11):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("5.0", 3), ("10.0", 4), ("+Inf", 5)]
    assert histogram.sum == 24


@pytest.mark.parametrize(
    ("most", "bounds"), [(1, (1,)), (8, (1, 2, 5)), (2048, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000))]
)
def test_token_buckets_end_with_the_context(most: int, bounds: tuple[int, ...]) -> None:
    assert one_two_five(most) == bounds
