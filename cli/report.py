"""Figures of a measurement as tables: numbers in one, percentiles of times in another."""

from collections.abc import Mapping
from typing import Any

from cli.measure import PERCENTILES
from cli.terminal import write_table


def write_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Write the tables on stdout. What ends in _ms is a summary of times, None where there were none."""
    rows = [
        (_words(name), _number(value)) for name, value in figures.items() if isinstance(value, float | int)
    ]
    write_table(title, ("measure", "value"), rows)
    times = {name: value for name, value in figures.items() if isinstance(value, dict) and "mean" in value}
    columns = ("milliseconds", "mean", *(f"p{percent}" for percent in PERCENTILES))
    write_table("Percentiles", columns, [_time_row(name, value) for name, value in times.items()])


def _time_row(name: str, value: Mapping[str, float]) -> list[str]:
    return [_words(name.removesuffix("_ms")), *(f"{figure:,.2f}" for figure in value.values())]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _words(name: str) -> str:
    return name.replace("_", " ")
