"""A kernel's time beside what it costs and what the device can do.

Its cost is the least that must be moved and computed; how much of the device's ceilings that comes to is its share.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.conformance import Options, Result
from core.conformance.bench import bench_cases, quantized_linear, scale_for
from core.conformance.kernels import Trial, Versions, platform_side, raised, reference_trial, trial
from core.conformance.timing import Ceilings, Effort, Stopwatch
from core.contracts.attention import Attention
from core.contracts.kernels import Arguments, Case, Kernel
from core.contracts.platform import Device, Platform
from core.contracts.quantization import FORMATS, QuantizedWeight
from core.errors import UnsupportedShape
from core.reference.costs import stored_bytes
from core.reference.inputs import Inputs

LEVEL = "performance"

_MOST_COPIES = 256


class Bench:
    """What serves each kernel in one dtype, on one device. Its ceilings are asked for anew before each case."""

    def __init__(
        self,
        platform: Platform,
        device: Device,
        dtype: str,
        options: Options,
        *,
        watch: Stopwatch,
        effort: Effort,
        ceilings: Callable[[], Ceilings],
    ) -> None:
        self._dtype, self._options = dtype, options
        self._watch, self._effort, self._ceilings = watch, effort, ceilings
        self._side = platform_side(platform, device)
        self._versions = Versions(platform, device, dtype)

    def results(self, kernel: Kernel) -> Iterator[Result]:
        """One for each case of the table, and of quantised weights where they are taken."""
        yield from (self._result(kernel, case) for case in self._cases(kernel))

    def _cases(self, kernel: Kernel) -> Iterator[Case]:
        capabilities, quick = self._side.capabilities, self._options.quick
        scale, inputs = scale_for(capabilities, quick=quick), Inputs(self._dtype, self._options.seed)
        yield from bench_cases(kernel.name, scale, inputs)
        if kernel.name == "linear":
            formats = sorted(capabilities.weight_formats & FORMATS.keys())
            for name in formats[:1] if quick else formats:
                yield from quantized_linear(scale, inputs, FORMATS[name])

    def _result(self, kernel: Kernel, case: Case) -> Result:
        found = Result(level=LEVEL, subject=kernel.name, case=case.name, dtype=self._dtype)
        try:
            attention = self._side.attending(case, self._dtype)
        except UnsupportedShape as error:
            return replace(found, unsupported=str(error))
        except Exception as error:
            return replace(found, problem=raised(error))
        try:
            return finite(replace(found, figures=self._figures(kernel, case, attention)))
        except FloatingPointError as error:
            return replace(found, problem=str(error))
        except Exception as error:
            return replace(found, problem=raised(error))

    def _figures(self, kernel: Kernel, case: Case, attention: Attention | None) -> dict[str, float]:
        spec, cost, ceilings = self._side.spec(case, self._dtype), kernel.cost(case), self._ceilings()
        function = self._versions.serving(kernel.name, spec)
        seconds = self._seconds(kernel, case, partial(trial, kernel, function, case, self._side, attention))
        reference = seconds
        if function is not kernel.reference:
            again = partial(reference_trial, kernel, case, self._dtype, self._side)
            reference = self._seconds(kernel, case, again)
        bytes_per_second, flops_per_second = cost.bytes_moved / seconds, cost.flops / seconds
        bandwidth = bytes_per_second / ceilings.bytes_per_second
        arithmetic = flops_per_second / ceilings.flops_per_second
        return {
            "seconds": seconds,
            "bytes_per_second": bytes_per_second,
            "flops_per_second": flops_per_second,
            "share_of_bandwidth": bandwidth,
            "share_of_arithmetic": arithmetic,
            "share_of_ceiling": max(bandwidth, arithmetic),
            "speed_against_reference": reference / seconds,
        }

    def _seconds(self, kernel: Kernel, case: Case, make: Callable[[], Trial]) -> float:
        """Of a call. Raises FloatingPointError when its results are not finite."""
        # As in the layers of a model, each of the calls that take turns has tensors of its own.
        copies = self._effort.spread_bytes // _held_bytes(case)
        trials = [make() for _ in range(max(1, min(_MOST_COPIES, copies)))]
        reset = _resetting(kernel, trials)
        if not _all_finite(trials[0].result()):
            raise FloatingPointError("a result is not finite")
        return self._watch.median([one.call for one in trials], reset)


def _held_bytes(case: Case) -> int:
    """Of all tensors that a case is made of."""
    cached = () if case.cached is None else (case.cached.key, case.cached.value)
    parts: list[Any] = [*case.arguments, *cached]
    for part in case.prepare:
        layer = is_dataclass(part) and not isinstance(part, QuantizedWeight)
        parts += [getattr(part, each.name) for each in fields(part)] if layer else [part]
    flat: list[Any] = []
    for part in parts:  # the experts of a mixture are many weights
        flat += part if isinstance(part, tuple) else [part]
    return stored_bytes(*(part for part in flat if isinstance(part, Tensor | QuantizedWeight)))


def finite(result: Result) -> Result:
    """The result, wrong if a figure of it is no number."""
    wrong = [name for name, value in result.figures.items() if not math.isfinite(value)]
    return replace(result, problem=f"not finite: {', '.join(wrong)}") if wrong else result


def _all_finite(parts: Arguments) -> bool:
    return all(bool(part.isfinite().all()) for part in parts if isinstance(part, Tensor))


def _resetting(kernel: Kernel, trials: list[Trial]) -> Callable[[], None]:
    """Gives back what a call may overwrite: else numbers would grow from call to call."""
    given = [part for one in trials for part in one.arguments[: kernel.given_away] if part is not None]
    with torch.inference_mode():
        kept = [part.clone() for part in given]

    def reset() -> None:
        for part, before in zip(given, kept, strict=True):
            part.copy_(before)

    return reset
