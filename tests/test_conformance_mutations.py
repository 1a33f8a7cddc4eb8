"""Faults of the kinds that platforms have, each found by the level that is there for it, and said in words."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from mutant_platforms import (
    DEVICE,
    CopiesNothing,
    Leaking,
    OutOfOrder,
    Sound,
    StaleTables,
    StaleWindow,
    WrongKernels,
)

from core.conformance import Options, Result
from core.conformance.levels import run
from core.contracts.platform import Platform
from core.discovery import collect
from core.hookspecs import GROUP

QUICK = Options(quick=True, dtypes=("float32",))


def wrong(platform: Platform, level: str) -> list[Result]:
    found: list[Result] = []
    results = run(platform, DEVICE, [level], QUICK, found.append)
    assert found == results and len(results) > 3
    return [result for result in results if result.problem]


def said(results: Sequence[Result]) -> str:
    return "\n".join(map(str, results))


@pytest.fixture(scope="module")
def ops() -> dict[str, list[Result]]:
    """What the level "ops" finds wrong with two kernels, by kernel."""
    found: dict[str, list[Result]] = {}
    for result in wrong(WrongKernels(), "ops"):
        found.setdefault(result.subject, []).append(result)
    return found


def test_a_kernel_that_is_off_by_a_thousandth_is_found_with_its_cases(ops: dict[str, list[Result]]) -> None:
    assert len({result.case for result in ops["linear"]}) > 5
    assert any("elements are off" in result.problem for result in ops["linear"]), said(ops["linear"])


def test_a_kernel_that_gives_nan_is_found(ops: dict[str, list[Result]]) -> None:
    assert any("nan" in result.problem for result in ops["rms_norm"]), said(ops["rms_norm"])


def test_kernels_that_are_made_of_neither_are_found_right(ops: dict[str, list[Result]]) -> None:
    assert not {"argmax", "embedding", "rotary", "sample", "silu_and_mul"} & ops.keys()


def test_the_sound_platform_that_the_others_are_made_of_passes() -> None:
    assert said(wrong(Sound(), "memory")) == ""


def test_memory_that_is_never_given_back_is_found() -> None:
    results = wrong(Leaking(), "memory")
    assert any("once every tensor is gone" in result.problem for result in results), said(results)


def test_a_read_of_blocks_that_a_window_has_left_behind_is_found() -> None:
    results = wrong(StaleWindow(), "attention")
    assert results
    assert all("window" in result.case for result in results), said(results)


def test_a_collective_that_returns_slices_out_of_order_is_found_over_two_ranks() -> None:
    results = wrong(OutOfOrder(), "communication")
    assert "all_gather" in {result.subject for result in results}, said(results)
    assert not {"all_reduce", "broadcast"} & {result.subject for result in results}, said(results)


def test_a_method_with_another_signature_is_refused_when_the_platform_is_registered() -> None:
    point = EntryPoint(name="mutants", value="mutant_platforms", group=GROUP)
    (found,) = collect([point]).platforms
    assert found.platform is None and not found.probe.available
    assert found.error is not None
    assert "attention(spec) should be attention(spec, device)" in found.error
    assert found.error == found.probe.reason


@pytest.mark.parametrize(
    ("mutant", "subject"), [(CopiesNothing, "forks"), (StaleTables, "greedy")], ids=["copies", "tables"]
)
def test_what_shows_only_in_whole_answers_is_found_there(mutant: Any, subject: str) -> None:
    results = wrong(mutant(), "engine")
    assert subject in {result.subject for result in results}
