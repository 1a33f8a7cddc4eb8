"""`llm doctor`: what of this machine is used, what is missing, what that costs, and what to do about it.

One finding a line. "problem" is something that the user can change and that costs a good part of the speed;
with one of those the command leaves with 1.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.environment import vector_instructions
from cli.failures import FAILED
from cli.options import takes
from cli.terminal import write, write_json
from core.config import format_bytes

if TYPE_CHECKING:
    from core.contracts.platform import Platform

Verdict = Literal["ok", "note", "problem"]
LITTLE_MEMORY = 2 * 2**30
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
TORCH_PATH = "without the C++ kernels, torch operations run instead, about 3 times slower when decoding"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and the next step where there is one."""

    subject: str
    verdict: Verdict
    found: str
    next_step: str = ""


@takes()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """What of this machine is used, what is missing, and what that costs. Leaves with 1 on a problem."""
    findings = list(examine())
    if json:
        write_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            step = f"; {finding.next_step}" if finding.next_step else ""
            write(f"{finding.verdict:<8} {finding.subject:<13} {finding.found}{step}\n")
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(FAILED)


def examine() -> Iterator[Finding]:
    """Every finding, the foundations first."""
    from core.native.cores import available_cores

    yield torch_build()
    yield openmp()
    yield compiler()
    yield from kernels()
    yield threads(len(available_cores()), os.environ.get("OMP_NUM_THREADS"), cpu_quota(CPU_QUOTA))
    yield memory()
    yield huge_pages(HUGE_PAGES)


def torch_build() -> Finding:
    """The library that the rest of the model runs on."""
    import torch

    if torch.backends.mkldnn.is_available():
        return Finding("torch", "ok", f"{torch.__version__}, with oneDNN")
    return Finding(
        "torch",
        "note",
        f"{torch.__version__}, without oneDNN: long prompts are computed without a vendor's library",
        "install torch from the Python package index",
    )


def openmp() -> Finding:
    """The thread pool that torch and the kernels share."""
    from core.native.library import openmp_library

    try:
        return Finding("OpenMP", "ok", str(openmp_library()))
    except OSError as error:
        return Finding("OpenMP", "problem", f"{error}: {TORCH_PATH}", "install torch from the package index")


def compiler() -> Finding:
    """What compiles the kernels."""
    from core.errors import CoreError
    from core.native.toolchain import find_compiler

    try:
        found = find_compiler()
    except CoreError as error:
        return Finding("compiler", "note", str(error))
    return Finding("compiler", "ok", f"{found.version.partition(chr(10))[0]} ({found.command[0]})")


def kernels() -> Iterator[Finding]:
    """The instruction set and the library of each platform that compiles kernels and can run here."""
    from core.discovery import load_plugins
    from core.errors import CoreError

    for found in load_plugins().platforms:
        if not found.probe.available or found.platform is None:
            continue
        try:
            yield from _library(found.platform)
        except CoreError as error:
            yield Finding(found.name, "problem", f"{error}: {TORCH_PATH}")


def _library(platform: "Platform") -> Iterator[Finding]:
    from core.native.library import NativeLibrary, native_library
    from core.native.toolchain import find_compiler, located

    builds = platform.native_builds()
    if not builds:
        return
    levels = list(builds)
    yield instructions(platform.name, levels[0], vector_instructions())
    subject, build = f"{platform.name} kernels", builds[levels[0]]
    if located(build) is None:
        find_compiler()  # raises when the library cannot be made either
        step = "run  llm kernels build"
        yield Finding(subject, "note", "not compiled yet; the first start takes up to a minute more", step)
        return
    library = native_library(build)
    if isinstance(library, NativeLibrary):
        yield Finding(subject, "ok", str(library.path))
    else:
        yield Finding(subject, "problem", f"{library}: {TORCH_PATH}")


def instructions(platform: str, level: str, present: str) -> Finding:
    """Whether everything the processor has may be used."""
    subject = f"{platform} level"
    if level == "native":
        return Finding(subject, "ok", f"native: {present}")
    return Finding(
        subject, "note", f"{level}, of {present}", "unset LLM_CPU_ISA to use all that the processor has"
    )


def cpu_quota(path: Path) -> float | None:
    """How many processors' time the control group grants, or None without a limit."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def threads(cores: int, asked: str | None, quota: float | None) -> Finding:
    """A thread per core is best: with more they wait for one another, with fewer cores idle."""
    count = int(asked) if asked and asked.isdigit() else cores
    limit = cores if quota is None else min(cores, max(1, int(quota)))
    found = f"{count} thread{'s' if count != 1 else ''} on {cores} core{'s' if cores != 1 else ''}"
    if quota is not None and quota < cores:
        found += f", of whose time the control group grants {quota:g}"
    if count > limit:
        step = f"set OMP_NUM_THREADS={limit}"
        return Finding(
            "threads", "problem", f"{found}: they wait for one another, 2 to 10 times slower", step
        )
    if count < limit:
        return Finding("threads", "note", f"{found}: the others idle", "unset OMP_NUM_THREADS")
    return Finding("threads", "ok", found)


def memory() -> Finding:
    """What weights and the KV cache have to share."""
    import psutil

    available = psutil.virtual_memory().available
    found = f"{format_bytes(available)} available"
    if available < LITTLE_MEMORY:
        step = "stop other programs, or choose a smaller model or a lower --kv-cache-memory"
        return Finding("memory", "problem", f"{found}, which is little for weights and a cache", step)
    return Finding("memory", "ok", found)


def huge_pages(path: Path) -> Finding:
    """Whether the kernel backs large weights with large pages."""
    try:
        modes = path.read_text().split()
    except OSError:
        return Finding("huge pages", "note", "this kernel has no transparent huge pages")
    mode = next((mode.strip("[]") for mode in modes if mode.startswith("[")), "unknown")
    if mode == "never":
        step = f"as root:  echo madvise > {path}"
        return Finding("huge pages", "note", "never: weights are read through small pages", step)
    return Finding("huge pages", "ok", mode)
