"""Levels in a process of their own: what ends it, or hangs, is a result, and the next level runs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.conformance import Options, Result
from core.conformance.apart import Apart
from core.conformance.levels import command
from core.engine.spawn import environment

DYING = """
import os, signal, time

from bare_platform import Bare
from core import hookimpl
from core.contracts.kernels import Implementation


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os.write(2, b"out of registers\\n")
    os._exit(3)


def hang():
    time.sleep(600)


class Dying(Bare):
    name = "dying"

    def kernels(self, device):
        end = globals()[os.environ["DYING"]]
        return {"silu_and_mul": Implementation(function=lambda x: end())}


@hookimpl
def core_platforms():
    return [Dying]
"""
QUICK = Options(quick=True)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A platform whose activation does what the environment names; and no process is left when a test is through."""
    (tmp_path / "dying.py").write_text(DYING)
    about = tmp_path / "dying-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: dying\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[core.plugins]\ndying = dying\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    assert [
        child for child in psutil.Process().children() if "core.conformance.apart" in child.cmdline()
    ] == []


def ended(results: list[Result]) -> tuple[Result, Result]:
    """The last check before a level ended, and what says so. Everything before has passed."""
    *others, last = results
    assert others and all(result.passed for result in others)
    assert (last.subject, last.case) == ("level", last.level)
    return others[-1], last


def test_a_kernel_that_crashes_ends_its_level_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYING", "crash")
    with Apart("dying", 60) as apart:
        before, last = ended(list(apart.check("ops", QUICK)))
        memory = list(apart.check("memory", QUICK))

    assert last.problem.startswith(f"ended with signal 11 (SIGSEGV) after {before.name}, float32")
    assert command("dying", last, QUICK) == "llm conformance --platform dying --level ops --quick"
    assert len(memory) > 10 and all(result.passed for result in memory)


def test_a_kernel_that_leaves_is_told_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYING", "leave")
    with Apart("dying", 60) as apart:
        before, last = ended(list(apart.check("ops", QUICK)))

    assert last.problem == f"ended with exit code 3 after {before.name}, float32: out of registers"


def test_a_kernel_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYING", "hang")
    with Apart("dying", 4) as apart:
        before, last = ended(list(apart.check("ops", QUICK)))

    assert last.problem == f"said nothing for 4 s after {before.name}, float32"


def test_a_level_that_is_left_in_the_middle_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYING", "hang")
    with pytest.raises(KeyboardInterrupt), Apart("dying", 60) as apart:
        for _ in apart.check("ops", QUICK):
            raise KeyboardInterrupt


def test_what_cannot_be_selected_ends_the_level_with_its_reason() -> None:
    with Apart("drying", 60) as apart:
        (found,) = apart.check("ops", QUICK)

    assert found.problem.startswith("ended with exit code 1 before its first check was through: ")
    assert "no platform is named 'drying'; did you mean dying?" in found.problem


def test_the_command_goes_on_after_a_crash_and_leaves_with_1() -> None:
    levels = ("--level", "ops", "--level", "attention", "--only", "silu_and_mul, ")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", "conformance", "--platform", "dying", "--quick", *levels],
        env=environment() | {"DYING": "crash"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 1, done.stderr
    problem = "ended with signal 11 (SIGSEGV) before its first check was through"
    assert (
        f"wrong  ops: level, ops: {problem}\n  llm conformance --platform dying --level ops --quick"
        in done.stdout
    )
    assert "1 check, 1 wrong. The platform is " in done.stdout


def test_a_process_that_is_started_by_hand_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "core.conformance.apart"],
        input="hello\n",
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "started by core.conformance, not by hand" in done.stderr
