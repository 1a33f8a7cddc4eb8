"""How far the C++ kernels may go into the processor's instruction sets.

"native" is everything this processor has. The other levels are for libraries that are built on one machine to
run on another, and for tests: LLM_CPU_ISA=avx2 runs what an older processor would run.
"""

import os
import platform as host
from collections.abc import Mapping
from pathlib import Path

from core.errors import ConfigError
from core.native.toolchain import NativeBuild

VARIABLE = "LLM_CPU_ISA"
NATIVE = "native"

CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "AMD64")

# Flags of each level on x86-64, and what /proc/cpuinfo calls the features that they assume.
_AVX2 = ("avx2", "bmi2", "f16c", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16")
_LEVELS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "avx512": (("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"), _AVX512),
    "avx2": (("-march=x86-64-v3",), _AVX2),
    "baseline": (("-march=x86-64",), ()),
}


def levels() -> Mapping[str, tuple[str, ...]]:
    """Level -> compiler flags, for this kind of machine, best first."""
    if host.machine() in _X86:
        return {NATIVE: ("-march=native",), **{name: flags for name, (flags, _) in _LEVELS.items()}}
    return {NATIVE: ("-mcpu=native",)}


def chosen_level() -> str:
    """The level named in LLM_CPU_ISA, else "native". Raises ConfigError for one that cannot run here."""
    level = os.environ.get(VARIABLE, NATIVE)
    if level not in levels():
        raise ConfigError(
            f"{VARIABLE} is {level!r}; {', '.join(levels())} are accepted on {host.machine()}",
            setting=VARIABLE,
        )
    if lacking := _lacking(level):
        raise ConfigError(
            f"{VARIABLE} is {level!r}, and this processor lacks {', '.join(lacking)}; unset it",
            setting=VARIABLE,
        )
    return level


def builds() -> Mapping[str, NativeBuild]:
    """Level -> what to compile, the chosen level first."""
    chosen, here = chosen_level(), Path(__file__).parent
    ordered = sorted(levels().items(), key=lambda item: item[0] != chosen)
    return {level: NativeBuild((here,), flags, f"cpu-{level}") for level, flags in ordered}


def chosen_build() -> NativeBuild:
    """What to compile for the chosen level. Raises ConfigError like `chosen_level`."""
    return next(iter(builds().values()))


def _lacking(level: str) -> list[str]:
    if level not in _LEVELS:
        return []
    has = set(_flags())
    return [feature for feature in _LEVELS[level][1] if feature not in has]


def _flags() -> list[str]:
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
