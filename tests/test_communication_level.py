"""Level "communication": what is right passes it, what is wrong is named, and no process stays behind."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from live_server import gone
from wrong_communications import (
    DEVICE,
    ConfusedPlatform,
    DyingPlatform,
    SolitaryPlatform,
    SoundPlatform,
    StuckPlatform,
)

from core.conformance import Options, Result
from core.conformance.communication import check, check_groups, spelled
from core.contracts.platform import Platform
from core.discovery import load_plugins

TOY = Path(__file__).parent / "toy_platform"
SUBJECTS = {
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "all_to_all",
    "send, receive",
    "in order",
    "barrier",
    "connect",
    "close",
    "processes",
}


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    children = [child for child in process.children(recursive=True) if not gone(child)]
    return [child for child in children if "core.conformance.rank" in child.cmdline()]


@pytest.fixture(autouse=True)
def no_rank_is_left() -> Iterator[None]:
    yield
    assert ranks_of(psutil.Process()) == []


def tried(platform: Platform, *sizes: int, seconds: float = 30.0) -> list[Result]:
    results = list(check_groups(platform, DEVICE, Options(), sizes, seconds))
    assert {result.level for result in results} == {"communication"}
    return results


def problems(results: list[Result]) -> list[str]:
    return [str(result) for result in results if result.problem]


def only(results: list[Result], subject: str, case: str) -> Result:
    (found,) = [result for result in results if result.subject == subject and case in result.case]
    return found


# What is right


def test_the_cpu_passes_over_one_two_and_four_ranks() -> None:
    platform, device = load_plugins().select_platform("cpu")

    results = list(check(platform, device, Options()))

    assert [str(result) for result in results if not result.passed] == []
    assert {result.subject for result in results} == SUBJECTS
    for size in ("1 rank", "2 ranks", "4 ranks"):
        assert any(result.case.startswith(size) for result in results)
    sources = {result.case.split(",")[0] for result in results if result.subject == "broadcast"}
    assert {f"4 ranks from rank {source}" for source in range(4)} <= sources
    assert {result.dtype for result in results} == {"", *platform.capabilities(device).dtypes}


@pytest.mark.slow
def test_the_simulated_accelerator_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    platform, device = load_plugins().select_platform("simulated")

    results = list(check(platform, device, Options(quick=True)))

    assert [str(result) for result in results if not result.passed] == []
    assert {result.dtype for result in results} == {"", "float32"}


def test_a_platform_that_is_not_installed_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(TOY), *sys.path])
    platform: Platform = importlib.import_module("toy_platform").ToyPlatform()

    results = tried(platform, 2)

    assert spelled(platform) == "toy_platform:ToyPlatform"
    assert [str(result) for result in results if not result.passed] == []
    assert {result.subject for result in results} == SUBJECTS


def test_ranks_find_an_installed_platform_by_its_name() -> None:
    assert spelled(load_plugins().select_platform("cpu")[0]) == "cpu"
    assert spelled(SoundPlatform()) == "wrong_communications:SoundPlatform"


def test_ranks_are_ended_where_there_is_no_waitid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "waitid")  # as on macOS before Python 3.13

    assert [str(result) for result in tried(SoundPlatform(), 1) if not result.passed] == []


# What is wrong


@pytest.fixture(scope="module")
def confused() -> list[Result]:
    return tried(ConfusedPlatform(), 2)


def test_slices_out_of_rank_order_are_found(confused: list[Result]) -> None:
    problem = only(confused, "all_gather", "1 number").problem
    assert "2 of 2 elements are off" in problem
    assert only(confused, "all_gather", "4,096").problem


def test_a_broadcast_that_ignores_its_source_is_found(confused: list[Result]) -> None:
    assert only(confused, "broadcast", "from rank 0, 4,096").passed
    problem = only(confused, "broadcast", "from rank 1, 4,096").problem
    assert "elements are off" in problem


def test_a_barrier_that_lets_everybody_pass_is_found(confused: list[Result]) -> None:
    problem = only(confused, "barrier", "each of them last").problem
    assert "rank 0: passed before rank 1 had arrived" in problem
    assert "rank 1: passed before rank 0 had arrived" in problem


def test_a_refusal_of_another_kind_is_found(confused: list[Result]) -> None:
    problem = only(confused, "reduce_scatter", "no equal slices").problem
    assert problem == "raised RuntimeError: bad shape; UnsupportedShape is expected for [3]"
    assert only(confused, "all_to_all", "no equal slices").passed


def test_writing_into_what_was_given_is_found(confused: list[Result]) -> None:
    problem = only(confused, "all_to_all", "4,096").problem
    assert "rank 0: wrote into the tensor that it was given: " in problem


def test_what_is_right_beside_it_passes(confused: list[Result]) -> None:
    right = [result.subject for result in confused if result.passed]
    assert {"connect", "all_reduce", "reduce_scatter", "send, receive", "close", "processes"} <= {*right}


def test_a_result_that_a_later_call_changes_and_a_rank_that_hangs_are_found() -> None:
    results = tried(StuckPlatform(), 2, seconds=4.0)

    assert only(results, "all_reduce", "4,096").passed
    assert "all_reduce: " in only(results, "in order", "one after another").problem
    hung = "did not return within 4 s; what follows was not tried"
    assert only(results, "barrier", "each of them last").problem == hung
    assert "close" not in {result.subject for result in results}


def test_a_rank_that_dies_is_found_with_its_last_words() -> None:
    results = tried(DyingPlatform(), 2)

    problem = only(results, "reduce_scatter", "1 number").problem
    assert "rank 1: ended with exit code 3: no such instruction; what follows was not tried" in problem
    assert "rank 0: " in problem
    assert only(results, "all_gather", "4,096").passed


def test_a_platform_that_refuses_a_group_does_not_support_it() -> None:
    results = tried(SolitaryPlatform(), 1, 2)

    assert problems(results) == []
    refused = only(results, "connect", "2 ranks")
    assert (refused.status, refused.unsupported) == ("not supported", "one device holds one rank")
    assert only(results, "all_reduce", "1 rank, 4,096").passed


def test_a_platform_that_no_other_process_can_import_is_a_problem() -> None:
    class Local(SoundPlatform):
        __module__ = "wrong_communications"
        name = "local"

    results = tried(Local(), 1)

    assert [result.subject for result in results] == ["processes"]
    assert "ended with exit code 1: AttributeError: " in results[0].problem


def test_no_rank_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from core.conformance import Options; from core.conformance.communication import check_groups;"
        "import wrong_communications as wrong;"
        "list(check_groups(wrong.StuckPlatform(), wrong.DEVICE, Options(), (2,), 300.0))"
    )
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-P", "-c", code], env=environment) as parent:
        try:
            until(lambda: list(tmp_path.glob("*/2/arrived-0")) or parent.poll() is not None, 90.0)
            ranks = ranks_of(psutil.Process(parent.pid))
        finally:
            parent.kill()
    try:
        assert len(ranks) == 2
        until(lambda: all(gone(rank) for rank in ranks), 20.0)
    finally:
        for rank in ranks:
            if not gone(rank):
                rank.kill()


def until(happened: Callable[[], object], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_rank_that_is_started_by_hand_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "core.conformance.rank"], input="hello\n", capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "started by core.conformance, not by hand" in done.stderr
