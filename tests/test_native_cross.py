"""The C++ kernels' own program (tests/native): natively at each level, by another compiler, for other machines under
an emulator.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.native.toolchain import CSRC, NativeBuild, command_line
from platforms.cpu.isa.levels import levels

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ROOT / "tests" / "native"
CPU_ISA, POWER_ISA = (ROOT / "platforms" / name / "isa" for name in ("cpu", "powerpc"))
# Compiled for the test's patience; the flags that decide which code is chosen are those of the library. The last
# two warnings are false alarms about the compiler's own intrinsics.
QUICKER = ("-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-warning-option")
QUICKER += ("-Wno-maybe-uninitialized", "-Wno-uninitialized")


@dataclass(frozen=True)
class Target:
    """A machine to compile for, and what with. `needs` are features of this processor, `emulator` runs the program
    instead.
    """

    name: str
    compiler: str
    flags: tuple[str, ...]
    isa: tuple[Path, ...]
    emulator: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()

    def missing(self) -> str:
        """What this machine lacks to compile and run it, or ""."""
        for program in (self.compiler, *self.emulator[:1]):
            if shutil.which(program) is None:
                return f"{program} is not installed"
        if not self.emulator and platform.machine() != "x86_64":
            return f"this machine is {platform.machine()}, not x86_64"
        lacking = self.needs - processor_features()
        return f"this processor lacks {', '.join(sorted(lacking))}" if lacking else ""


def processor_features() -> frozenset[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), []))


def x86(
    name: str, flags: Sequence[str], *needs: str, isa: tuple[Path, ...] = (CPU_ISA,), compiler: str = "g++"
) -> Target:
    return Target(name, compiler, tuple(flags), isa, needs=frozenset(needs))


def power(cpu: str) -> Target:
    emulator = ("qemu-ppc64le", "-cpu", cpu.upper())
    return Target(cpu, "powerpc64le-linux-gnu-g++", (f"-mcpu={cpu}",), (POWER_ISA,), emulator)


def arm(name: str, march: str) -> Target:
    emulator = ("qemu-aarch64", "-cpu", "max")
    return Target(name, "aarch64-linux-gnu-g++", (f"-march={march}",), (CPU_ISA,), emulator)


X86_LEVELS = levels() if platform.machine() == "x86_64" else {}
TARGETS = (
    x86("avx512", X86_LEVELS.get("avx512", ()), "avx512_bf16", "avx512_vnni"),
    x86("avx2", X86_LEVELS.get("avx2", ()), "avx2", "fma"),
    x86("baseline", X86_LEVELS.get("baseline", ())),
    x86("native-clang", X86_LEVELS.get("native", ()), compiler="clang++"),
    power("power9"),
    power("power10"),
    arm("armv8-dotprod", "armv8.2-a+dotprod+bf16"),
)
# What differs less from these, for those who change the kernels.
MORE_TARGETS = (
    x86("native", X86_LEVELS.get("native", ())),
    x86("avx512-without-vnni", ("-march=x86-64-v4",), "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    x86("generic", ("-march=native",), isa=()),
    x86("generic-clang", ("-march=native",), isa=(), compiler="clang++"),
    x86("baseline-clang", X86_LEVELS.get("baseline", ()), compiler="clang++"),
    power("power8"),
    arm("armv8", "armv8-a"),
)


@pytest.mark.parametrize(
    "target",
    [*TARGETS, *(pytest.param(target, marks=pytest.mark.slow) for target in MORE_TARGETS)],
    ids=lambda target: target.name,
)
def test_the_kernels_compute_what_loops_in_double_precision_do(target: Target, tmp_path: Path) -> None:
    if missing := target.missing():
        pytest.skip(missing)
    program = linked(target, tmp_path)

    ran = subprocess.run(
        [*target.emulator, str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    wrong = [line for line in ran.stdout.splitlines() if line.startswith("WRONG")]
    assert (ran.returncode, wrong) == (0, []), ran.stdout[-3000:] + ran.stderr
    assert " 0 wrong" in ran.stdout


def linked(target: Target, folder: Path) -> Path:
    """The program, compiled two files at a time."""
    build = NativeBuild((*target.isa, CHECKS), (*target.flags, *QUICKER), target.name)
    sources = sorted([*CSRC.glob("*.cpp"), *CHECKS.glob("*.cpp")])
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        compiled = [
            pool.submit(run, command_line((target.compiler,), build, source, made))
            for source, made in zip(sources, objects, strict=True)
        ]
        for each in compiled:
            each.result()
    program = folder / "check"
    # GNU's OpenMP, whose functions are called by name, is named too: each compiler would bring its own.
    link = ("-static", *map(str, objects), "-lgomp", "-lpthread", "-ldl", "-o", str(program))
    run((target.compiler, *target.flags, *link))
    return program


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
