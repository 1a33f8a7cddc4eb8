"""`llm doctor` of a machine, and `llm kernels build`: what they find, what they say, and how they leave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import doctor_machine
from cli.doctor_finding import Finding


def llm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def findings(answer: subprocess.CompletedProcess[str]) -> dict[str, Finding]:
    return {found["subject"]: Finding(**found) for found in json.loads(answer.stdout)}


def test_every_line_has_a_verdict_and_a_problem_is_an_exit_code(tmp_path: Path) -> None:
    answer = llm("doctor", LLM_CACHE=str(tmp_path), OMP_NUM_THREADS="999")

    lines = answer.stdout.splitlines()
    assert answer.returncode == 1, answer.stderr
    assert {line.split()[0] for line in lines} <= {"ok", "note", "problem"}
    (threads,) = (line for line in lines if "999 threads on" in line)
    assert threads.startswith("problem") and "set OMP_NUM_THREADS=" in threads
    assert len(lines) >= 6


def test_its_help_loads_nothing_that_computes() -> None:
    program = (
        "import sys; from cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--model" in done.stdout and "--json" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_value_that_no_machine_would_accept_is_refused_before_anything_is_looked_at() -> None:
    answer = llm("doctor", "--dtype", "int3")

    assert (answer.returncode, answer.stdout) == (2, "")
    assert "--dtype" in answer.stderr and "int3" in answer.stderr


def test_a_finding_of_several_lines_stays_in_its_column() -> None:
    finding = Finding("selected", "problem", "no platform can run.\n  toy  none", "install one")

    first, second = finding.line().splitlines()
    assert first.startswith("problem  selected ")
    assert second.index("  toy  none; install one") == first.index("no platform can run.")


def test_without_a_compiler_the_kernels_are_a_problem_that_says_what_to_install(tmp_path: Path) -> None:
    answer = llm("doctor", "--json", LLM_CACHE=str(tmp_path), CXX="no-such-compiler")

    found = findings(answer)
    assert answer.returncode == 1
    assert "no-such-compiler" in found["compiler"].found
    assert any(f.verdict == "problem" and "about 3 times slower" in f.found for f in found.values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_kernels_that_are_not_compiled_yet_are_no_problem(tmp_path: Path) -> None:
    found = findings(llm("doctor", "--json", LLM_CACHE=str(tmp_path)))

    assert found["cpu kernels"].verdict == "note"
    assert "llm kernels build" in found["cpu kernels"].next_step


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_kernels_that_were_built_are_found_loaded_and_not_built_again() -> None:
    first = json.loads(llm("kernels", "build", "--json", "--quiet").stdout)
    again = json.loads(llm("kernels", "build", "--json", "--quiet").stdout)

    assert [Path(built["path"]).exists() for built in first] == [True] * len(first) != []
    assert [built["path"] for built in again] == [built["path"] for built in first]
    assert all(built["seconds"] < 5 for built in again)
    found = findings(llm("doctor", "--json"))
    assert (found["cpu kernels"].verdict, found["cpu kernels"].found) == ("ok", first[0]["path"])


def test_a_level_that_no_platform_has_is_a_usage_error() -> None:
    answer = llm("kernels", "build", "--isa", "imaginary")

    assert answer.returncode == 2
    assert "--isa is 'imaginary'" in answer.stderr and "native" in answer.stderr


@pytest.mark.parametrize(
    ("cores", "asked", "quota", "verdict", "words"),
    [
        (8, None, None, "ok", "8 threads on 8 cores"),
        (1, None, None, "ok", "1 thread on 1 core"),
        (8, "8", None, "ok", "8 threads"),
        (8, "4", None, "note", "unset OMP_NUM_THREADS"),
        (8, "16", None, "problem", "OMP_NUM_THREADS=8"),
        (8, None, 2.0, "problem", "OMP_NUM_THREADS=2"),
        (8, "2", 2.5, "ok", "2 threads"),
        (8, None, 0.5, "problem", "OMP_NUM_THREADS=1"),
        (8, None, 16.0, "ok", "8 threads"),
        (8, "nonsense", None, "ok", "8 threads"),
    ],
)
def test_threads_are_held_against_cores_and_what_the_control_group_grants(
    cores: int, asked: str | None, quota: float | None, verdict: str, words: str
) -> None:
    found = doctor_machine.threads(cores, asked, quota)

    assert found.verdict == verdict
    assert words in f"{found.found} {found.next_step}"


@pytest.mark.parametrize(("text", "quota"), [("200000 100000\n", 2.0), ("max 100000\n", None), ("", None)])
def test_the_control_groups_grant_is_read(text: str, quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)

    assert doctor_machine.cpu_quota(tmp_path / "cpu.max") == quota
    assert doctor_machine.cpu_quota(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("text", "verdict"), [("always [madvise] never\n", "ok"), ("always madvise [never]\n", "note")]
)
def test_huge_pages_that_are_switched_off_are_noted(text: str, verdict: str, tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text(text)

    assert doctor_machine.huge_pages(tmp_path / "enabled").verdict == verdict
    assert doctor_machine.huge_pages(tmp_path / "absent").verdict == "note"


def test_a_level_below_the_processors_own_is_noted() -> None:
    assert doctor_machine.instructions("cpu", "native", "avx2").verdict == "ok"
    assert "unset LLM_CPU_ISA" in doctor_machine.instructions("cpu", "avx2", "avx512f").next_step


@pytest.mark.parametrize(
    ("cores", "asked", "bound", "verdict", "words"),
    [
        ([0, 2, 5], None, None, "ok", "a thread each on 2, 5"),
        ([0, 2], "2", None, "ok", "a thread each on 2;"),
        ([0, 2, 4], "2", None, "note", "2 threads for 3 cores"),
        ([0], "2", None, "note", "2 threads for 1 core,"),
        ([0, 2], None, "close", "ok", "OMP_PROC_BIND=close"),
        ([3], None, None, "ok", "one thread"),
        ([3, 4], "1", None, "ok", "one thread"),
    ],
)
def test_it_says_whether_each_thread_keeps_a_core(
    cores: list[int], asked: str | None, bound: str | None, verdict: str, words: str
) -> None:
    found = doctor_machine.pinning(cores, asked, bound)

    assert found.verdict == verdict
    assert words in found.found
    assert bool(found.next_step) == (verdict == "note")
