"""How long calls take on a device, and what it does at most: bytes read and copied, and flops of large products.

Measures through plain torch and the platform's `Execution`; judges nothing.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any

import torch

Call = Callable[[], Any]

_RUN_SECONDS = 0.002  # calls are timed together for so long: clocks, and waiting, then cost little
_MOST_CALLS = 100
_MOST_RUNS = 25
_COPY_BYTES = 2**28  # that are copied or read at once: several times what caches hold
_LONG_SECONDS = 0.05  # a product that takes so long shows all that larger ones would


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is spent on figures.

    seconds       on the runs of one figure, after what comes first; one run there is always
    matrix_sizes  of square matrices that are multiplied, until a product takes long
    spread_bytes  that what successive calls work on is spread over, so that caches do not keep it
    """

    seconds: float
    matrix_sizes: tuple[int, ...]
    spread_bytes: int


THOROUGH = Effort(seconds=0.25, matrix_sizes=(512, 1024, 2048, 4096, 8192), spread_bytes=2**28)
BRIEF = Effort(seconds=0.03, matrix_sizes=(512, 1024, 2048), spread_bytes=2**26)


@dataclass(frozen=True)
class Ceilings:
    """What a device does at most, as measured: bytes read and written, and flops of kernels in one dtype."""

    bytes_per_second: float
    flops_per_second: float


def _nothing() -> None:
    return


class Stopwatch:
    """Times calls. `synchronize` returns when the device has finished what was submitted."""

    def __init__(self, synchronize: Callable[[], None], seconds: float) -> None:
        self._synchronize = synchronize
        self._seconds = seconds

    def median(self, calls: Sequence[Call], reset: Callable[[], None] = _nothing) -> float:
        """Seconds of a call, as it usually is."""
        return median(self.runs(calls, reset))

    def runs(self, calls: Sequence[Call], reset: Callable[[], None] = _nothing) -> list[float]:
        """Seconds of a call in each of several runs. `calls` take turns, and a run goes on where the last one ended.

        Each of `calls` is made once before, because the first time may cost more. `reset` comes before every run.
        """
        with torch.inference_mode():
            if self._run(iter(calls), 1, _nothing) > self._seconds:  # no time for more than one that counts
                return [self._run(iter(calls), 1, reset)]
            for call in calls[1:]:
                call()
            turns = cycle(calls)
            count = max(1, min(_MOST_CALLS, round(_RUN_SECONDS / self._run(turns, 1, reset))))
            times: list[float] = []
            end = perf_counter() + self._seconds
            while not times or (len(times) < _MOST_RUNS and perf_counter() < end):
                times.append(self._run(turns, count, reset))
        return times

    def _run(self, turns: Iterator[Call], count: int, reset: Callable[[], None]) -> float:
        reset()
        self._synchronize()
        begin = perf_counter()
        for call in islice(turns, count):
            call()
        self._synchronize()
        return max(perf_counter() - begin, 1e-9) / count


class Bandwidth:
    """Measures a device's memory, as often as it is asked: machines that others use, too, are not always as fast."""

    def __init__(self, watch: Stopwatch, torch_device: str) -> None:
        self._watch = watch
        self._source = torch.ones(_COPY_BYTES // 4, dtype=torch.float32, device=torch_device)
        self._target = torch.zeros_like(self._source)

    def rates(self) -> dict[str, float]:
        """Bytes per second of a copy, read and written both counted, and of a sum: of each the best of its runs."""
        copied = min(self._watch.runs([partial(self._target.copy_, self._source)]))
        summed = min(self._watch.runs([partial(torch.sum, self._source)]))
        return {"copy": 2 * self._source.nbytes / copied, "read": self._source.nbytes / summed}


class Arithmetic:
    """Measures a device's products of large matrices, once in each dtype.

    declared  the dtypes of the device
    """

    def __init__(
        self, watch: Stopwatch, torch_device: str, effort: Effort, declared: Collection[str]
    ) -> None:
        self._watch, self._device, self._effort, self._declared = watch, torch_device, effort, declared
        self._rates: dict[str, float] = {}

    def rate(self, dtype: str) -> float:
        """Flops per second of torch's product in this dtype: the best over sizes and runs."""
        if dtype not in self._rates:
            self._rates[dtype] = max(self._products(getattr(torch, dtype)))
        return self._rates[dtype]

    def ceiling(self, dtype: str) -> float:
        """Flops per second that a kernel of this dtype may come to: it may compute in float32, if the device does."""
        return max(self.rate(each) for each in {dtype, "float32"} if each in self._declared)

    def _products(self, dtype: torch.dtype) -> Iterator[float]:
        generator = torch.Generator().manual_seed(0)
        for size in self._effort.matrix_sizes:
            whole = torch.randn(2, size, size, generator=generator).to(dtype).to(self._device)
            seconds = min(self._watch.runs([partial(torch.mm, whole[0], whole[1])]))
            yield 2 * size**3 / seconds
            if seconds > _LONG_SECONDS:
                return
