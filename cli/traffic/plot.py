"""The figures of a run as a picture: how its times are spread, and what went on when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.failures import CommandError, file_errors
from cli.traffic.records import Record

SIZE = (12.0, 8.0)  # inches, of 100 pixels
BINS = 60
ROOM_FOR_LEGEND = 0.35  # above the curves, as part of their height


def imported_figure() -> Any:
    """matplotlib's Figure, which needs no display. Raises CommandError where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError(
            '--plot needs matplotlib, which is not installed:  pip install "core[bench]"'
        ) from None
    return Figure


def save_plot(records: Sequence[Record], limits: dict[str, float], title: str, path: Path) -> None:
    """Four charts as a PNG. Raises CommandError when the file cannot be written."""
    figure = imported_figure()(figsize=SIZE, dpi=100, layout="constrained")
    figure.suptitle(title)
    first, gaps, whole, timeline = figure.subplots(2, 2).flat
    done = [record for record in records if record.error is None]
    _spread(first, "time to first token", {"TTFT": [r.ttft for r in done]}, limits.get("ttft"))
    between = {"TPOT": [r.tpot for r in done], "ITL": [gap for r in done for gap in r.gaps]}
    _spread(gaps, "time per output token, between pieces", between, limits.get("tpot"))
    _spread(whole, "whole request", {"E2E": [r.e2e for r in done]}, limits.get("e2e"))
    _timeline(timeline, records)
    with file_errors(f"write {path}"):
        figure.savefig(path, format="png")


def _spread(axes: Any, name: str, times: dict[str, list[float | None]], limit: float | None) -> None:
    """What part of the requests was that fast or faster."""
    for label, values in times.items():
        ordered = sorted(value * 1e3 for value in values if value is not None)
        axes.plot(ordered, [100 * (i + 1) / len(ordered) for i in range(len(ordered))], label=label)
    if limit is not None:
        axes.axvline(limit, color="black", linestyle="--", label="SLO")
    axes.set(xlabel=f"{name}, ms", ylabel="% at most", ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend()


def _timeline(axes: Any, records: Sequence[Record]) -> None:
    """Tokens per second, requests under way, and failures, over the run."""
    end = max((record.ended for record in records), default=0.0) or 1.0
    width = end / BINS
    middles = [(i + 0.5) * width for i in range(BINS)]
    tokens, under_way = [0.0] * BINS, [0] * BINS
    for record in records:
        for piece in record.pieces:
            tokens[min(int(piece / width), BINS - 1)] += record.num_output / len(record.pieces) / width
        for i, middle in enumerate(middles):
            under_way[i] += record.sent <= middle < record.ended
    axes.plot(middles, tokens, label="output tokens per second")
    failed = [record.ended for record in records if record.error is not None]
    if failed:
        axes.plot(failed, [0] * len(failed), "rx", label="failed request")
    axes.set(xlabel="seconds", ylabel="tokens per second")
    axes.grid(alpha=0.3)
    beside = axes.twinx()
    beside.plot(middles, under_way, color="tab:orange", label="requests under way")
    beside.set(ylabel="requests")
    for each in (axes, beside):
        each.margins(y=ROOM_FOR_LEGEND)
        each.set(ylim=(0, None))
    lines = [*axes.get_lines(), *beside.get_lines()]
    beside.legend(lines, [line.get_label() for line in lines], loc="upper right")
