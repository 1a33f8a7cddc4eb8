"""The level "performance": figures for every kernel, slow ones told from fast ones, wrong ones from slow ones."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from core.conformance import Options, Result
from core.conformance.figures import COLUMNS, figure_rows
from core.conformance.heads import head_dim_for
from core.conformance.performance import check, host_overhead
from core.conformance.roofline import Bench
from core.conformance.timing import BRIEF, Arithmetic, Ceilings, Stopwatch
from core.contracts.attention import Attention
from core.contracts.kernels import DecoderLayerWeights, Implementation
from core.contracts.platform import Capabilities, Device, Platform, Probe, SchedulingLimits
from core.contracts.versions import VERSIONS
from core.reference import KERNELS
from platforms.cpu.platform import CpuPlatform

DEVICE = Device(name="it", torch_device="cpu")
QUICK = Options(quick=True)
SHARES = ("share_of_bandwidth", "share_of_arithmetic", "share_of_ceiling")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Plain(Platform):
    """The reference, but for the kernels that a test gives it."""

    contract, name, device_type, priority = VERSIONS["platform"], "plain", "cpu", -20

    def __init__(self, limits: SchedulingLimits | None = None, **kernels: Callable[..., Any]) -> None:
        self._limits, self._kernels = limits or SchedulingLimits(), kernels

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=("float32",), scheduling=self._limits)

    def kernels(self, device: Device) -> Mapping[str, Implementation]:
        return {name: Implementation(function=function) for name, function in self._kernels.items()}


def measured(platform: Platform, kernel: str) -> dict[str, Result]:
    """The results of one kernel, by case, against ceilings that are always the same."""
    watch = Stopwatch(lambda: None, BRIEF.seconds)
    bench = Bench(
        platform,
        DEVICE,
        "float32",
        QUICK,
        watch=watch,
        effort=BRIEF,
        ceilings=lambda: Ceilings(bytes_per_second=1e10, flops_per_second=1e11),
    )
    return {result.case: result for result in bench.results(KERNELS[kernel])}


def test_every_kernel_of_the_cpu_is_measured_against_its_ceilings_and_every_figure_is_finite() -> None:
    cpu = CpuPlatform()
    results = list(check(cpu, cpu.probe().devices[0], QUICK))

    assert [str(result) for result in results if not result.passed] == []
    assert {result.level for result in results} == {"performance"}
    assert {result.subject for result in results} == {"device", "engine", *KERNELS}
    assert len({(result.subject, result.case, result.dtype) for result in results}) == len(results)
    for result in results:
        assert result.figures and all(
            math.isfinite(value) and value >= 0 for value in result.figures.values()
        )
        if result.subject in KERNELS:
            assert all(result.figures[share] > 0 for share in SHARES[::2]), str(result)
            assert result.figures["share_of_ceiling"] == max(result.figures[share] for share in SHARES)


def test_a_kernel_is_measured_on_one_row_on_many_decodes_and_on_a_prompt() -> None:
    cases = measured(Plain(), "rms_norm")

    assert list(cases) == ["a decode", "32 decodes", "a prompt of 512"]


def test_a_slowed_kernel_has_a_smaller_share_than_the_one_that_it_was_made_of() -> None:
    reference = KERNELS["silu_and_mul"].reference

    def slowed(x: Tensor) -> Tensor:
        time.sleep(0.05)
        return reference(x)

    slow, fast = measured(Plain(silu_and_mul=slowed), "silu_and_mul"), measured(Plain(), "silu_and_mul")

    assert slow.keys() == fast.keys()
    for case, result in slow.items():
        assert result.passed  # slow is not wrong
        assert result.figures["seconds"] >= 0.05
        assert result.figures["share_of_ceiling"] < fast[case].figures["share_of_ceiling"]
        assert result.figures["speed_against_reference"] < 1


def test_figures_follow_from_the_cost_the_time_and_the_ceilings() -> None:
    (figures, *_) = (result.figures for result in measured(Plain(), "linear").values())

    moved, flops = 4 * (2048 * 512 + 512 + 2048), 2 * 2048 * 512
    assert figures["bytes_per_second"] == pytest.approx(moved / figures["seconds"])
    assert figures["flops_per_second"] == pytest.approx(flops / figures["seconds"])
    assert figures["share_of_bandwidth"] == pytest.approx(figures["bytes_per_second"] / 1e10)
    assert figures["share_of_arithmetic"] == pytest.approx(figures["flops_per_second"] / 1e11)
    assert figures["speed_against_reference"] == 1.0  # it is the reference


def nan(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.full_like(x, torch.nan)


def raising(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise RuntimeError("out of registers")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [(nan, "a result is not finite"), (raising, "raised RuntimeError: out of registers")],
)
def test_a_kernel_that_gives_no_numbers_is_wrong_and_ends_nothing(
    broken: Callable[..., Tensor], problem: str
) -> None:
    results = measured(Plain(rms_norm=broken), "rms_norm").values()

    assert [result.problem for result in results] == [problem] * 3


def test_what_a_layer_overwrites_does_not_grow_from_run_to_run() -> None:
    largest: list[float] = []

    def doubling(attention: Attention, weights: DecoderLayerWeights, eps: float) -> Callable[..., Any]:
        def apply(x: Tensor, residual: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
            largest.append(float(residual.abs().max()))
            return x, residual.mul_(2)

        return apply

    results = measured(Plain(decoder_layer=doubling), "decoder_layer")

    assert all(result.passed for result in results.values())
    assert len(largest) > 1000 and max(largest) < math.inf


def test_a_layer_of_more_sequences_than_a_step_holds_is_not_measured() -> None:
    results = measured(Plain(limits=SchedulingLimits(max_num_seqs=4)), "decoder_layer")

    assert results["32 decodes"].status == "not supported"
    assert "max_num_seqs" in results["32 decodes"].unsupported
    assert results["a decode"].passed and results["a prompt of 512"].passed


def test_the_hosts_part_of_a_step_is_measured_on_a_platform_that_is_not_installed() -> None:
    result = host_overhead(Plain(), DEVICE, QUICK)

    assert result.passed, str(result)
    assert 0 < result.figures["host_seconds_per_step"] < result.figures["seconds_per_step"]
    assert 0 < result.figures["host_share"] < 1


@pytest.mark.parametrize(
    ("accepted", "size"), [(None, 64), ((32, 64), 64), ((256, 128), 128), ((16, 80), 80)]
)
def test_heads_are_of_the_usual_size_or_of_the_nearest_that_a_device_accepts(
    accepted: tuple[int, ...] | None, size: int
) -> None:
    assert head_dim_for(Capabilities(dtypes=("float32",), head_dims=accepted), 64) == size


# Ceilings


def test_a_dtype_in_which_products_are_slow_is_held_to_those_in_float32_where_the_device_has_it() -> None:
    def ceilings(*declared: str) -> tuple[float, float, float]:
        watch = Stopwatch(lambda: None, BRIEF.seconds)
        arithmetic = Arithmetic(watch, "cpu", BRIEF, declared)
        return arithmetic.rate("float64"), arithmetic.rate("float32"), arithmetic.ceiling("float64")

    slow, fast, ceiling = ceilings("float64", "float32")
    assert ceiling == fast > slow
    slow, fast, ceiling = ceilings("float64")
    assert ceiling == slow < fast


# The table


def shown(subject: str, **figures: float) -> tuple[str, ...]:
    ((name, _, _, *cells),) = figure_rows(
        [Result(level="performance", subject=subject, case="it", figures=figures)]
    )
    assert len(cells) + 3 == len(COLUMNS) and name == subject
    return tuple(cells)


def test_the_table_says_which_ceiling_a_kernel_is_nearest_to() -> None:
    figures = {
        "seconds": 0.00125,
        "bytes_per_second": 2e9,
        "flops_per_second": 1.5e12,
        "speed_against_reference": 2,
    }
    shares = {"share_of_bandwidth": 0.1, "share_of_arithmetic": 0.75, "share_of_ceiling": 0.75}

    assert shown("linear", **figures, **shares) == ("1,250", "2", "1,500", "75% of arithmetic", "2")
    shares["share_of_bandwidth"] = shares["share_of_ceiling"] = 0.8
    assert shown("linear", **figures, **shares)[3] == "80% of bandwidth"


def test_the_table_leaves_out_what_a_figure_does_not_say() -> None:
    assert shown("device", bytes_per_second=3.21e10) == ("", "32.1", "", "", "")
    assert shown("engine", seconds_per_step=2e-4, host_share=0.625) == (
        "200",
        "",
        "",
        "62% is the host's",
        "",
    )
    assert figure_rows([Result(level="engine", subject="engine", case="it", figures={"seconds": 1.0})]) == []


# The stopwatch


def test_calls_take_turns_from_run_to_run_and_what_they_overwrite_is_given_back_before_every_run() -> None:
    calls: list[str] = []
    first, second = (lambda name=name: calls.append(name) for name in ("first", "second"))

    times = Stopwatch(lambda: None, seconds=1.0).runs([first, second], lambda: calls.append("reset"))

    first_times, *runs = "".join(name[0] for name in calls).split("r")
    counted = "".join(runs)
    assert first_times == "fs"  # these are not counted
    assert len(runs) == len(times) + 1  # and one by which calls are counted out
    assert counted == "fs" * (len(counted) // 2) + "f" * (len(counted) % 2)


def test_what_takes_longer_than_there_is_time_is_timed_once() -> None:
    calls: list[int] = []
    slow = [lambda i=i: (calls.append(i), time.sleep(0.02)) for i in range(3)]

    times = Stopwatch(lambda: None, seconds=0.01).runs(slow)

    assert calls == [0, 0]
    assert len(times) == 1 and times[0] >= 0.02


def test_a_device_is_waited_for_before_a_run_and_after_it() -> None:
    events: list[str] = []
    watch = Stopwatch(lambda: events.append("wait"), seconds=0.0)

    watch.runs([lambda: events.append("call")])

    assert events == ["wait", "call", "wait"] * 2
