"""What the level "performance" measured, as a table to read. The figures themselves are in the results."""

from collections.abc import Iterable, Mapping

from core.conformance import Result

COLUMNS = ("measured", "case", "dtype", "µs", "GB/s", "GFLOP/s", "of the ceiling", "x reference")
"""What `figure_rows` has in its columns."""

_UNITS = (("bytes_per_second", 1e-9), ("flops_per_second", 1e-9))


def figure_rows(results: Iterable[Result]) -> list[tuple[str, ...]]:
    """A row of texts for each result of that level that has figures."""
    return [
        (result.subject, result.case, result.dtype, *_cells(result.figures))
        for result in results
        if result.level == "performance" and result.figures
    ]


def _cells(figures: Mapping[str, float]) -> tuple[str, ...]:
    seconds = figures.get("seconds", figures.get("seconds_per_step"))
    rates = (_number(figures[name] * unit) if figures.get(name) else "" for name, unit in _UNITS)
    faster = figures.get("speed_against_reference")
    return (
        "" if seconds is None else _number(seconds * 1e6),
        *rates,
        _share(figures),
        "" if faster is None else _number(faster),
    )


def _share(figures: Mapping[str, float]) -> str:
    if "host_share" in figures:
        return f"{figures['host_share']:.0%} is the host's"
    if "share_of_ceiling" not in figures:
        return ""
    of_memory = figures["share_of_bandwidth"] >= figures["share_of_arithmetic"]
    return f"{figures['share_of_ceiling']:.0%} of {'bandwidth' if of_memory else 'arithmetic'}"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
