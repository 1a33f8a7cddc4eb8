"""What `llm doctor` finds of the machine: libraries, compilers, compiled kernels, threads and memory."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.doctor_finding import Finding
from cli.doctor_plugins import rid_of
from cli.environment import vector_instructions
from core.config import format_bytes
from core.examination import reason_of

if TYPE_CHECKING:
    from core.contracts.platform import Platform
    from core.discovery import Plugins

LITTLE_MEMORY = 2 * 2**30
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
TORCH_PATH = "without the C++ kernels, torch operations run instead, about 3 times slower when decoding"


def machine(plugins: "Plugins") -> Iterator[Finding]:
    """Every finding, the foundations first."""
    from core.native.cores import available_cores

    cores, asked = available_cores(), os.environ.get("OMP_NUM_THREADS")
    yield torch_build()
    yield openmp()
    yield compiler()
    yield from kernels(plugins)
    yield threads(len(cores), asked, cpu_quota(CPU_QUOTA))
    yield pinning(cores, asked, os.environ.get("OMP_PROC_BIND"))
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


def kernels(plugins: "Plugins") -> Iterator[Finding]:
    """The instruction set and the library of each platform that compiles kernels and can run here."""
    from core.errors import CoreError

    for found in plugins.platforms:
        if not found.probe.available or found.platform is None:
            continue
        try:
            yield from _library(found.platform)
        except CoreError as error:
            yield Finding(f"{found.name} kernels", "problem", f"{error}: {TORCH_PATH}")
        except Exception as error:  # whatever a platform raises is a finding
            yield Finding(f"{found.name} kernels", "problem", reason_of(error), rid_of(found))


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
    count = _threads(cores, asked)
    limit = cores if quota is None else min(cores, max(1, int(quota)))
    found = f"{_counted(count, 'thread')} on {_counted(cores, 'core')}"
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


def pinning(cores: Sequence[int], asked: str | None, bound: str | None) -> Finding:
    """Whether the threads keep to cores of their own while a model runs on the processor.

    cores  one processor number of each core that may be used
    asked  OMP_NUM_THREADS;  bound  OMP_PROC_BIND. A pool that they describe is left as it is
    """
    count = _threads(len(cores), asked)
    if bound is not None:
        listed = ", ".join(map(str, cores))
        return Finding("pinning", "ok", f"left to OMP_PROC_BIND={bound}, over the processors {listed}")
    if count == 1:
        return Finding("pinning", "ok", "one thread, which meets no other")
    if count != len(cores):
        found = f"none: of {count} threads for {_counted(len(cores), 'core')}, several may meet on one"
        step = "unset OMP_NUM_THREADS, or set OMP_PROC_BIND, too"
        return Finding("pinning", "note", found, step)
    kept = ", ".join(map(str, cores[1:]))
    return Finding("pinning", "ok", f"once a model runs, a thread each on {kept}; the calling one is free")


def memory() -> Finding:
    """What weights and the KV cache have to share."""
    import psutil

    available = psutil.virtual_memory().available
    found = f"{format_bytes(available)} available"
    if available < LITTLE_MEMORY:
        step = "stop other programs, or choose a smaller model or a lower --kv-cache-memory"
        return Finding("host memory", "problem", f"{found}, which is little for weights and a cache", step)
    return Finding("host memory", "ok", found)


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


def _threads(cores: int, asked: str | None) -> int:
    return int(asked) if asked and asked.isdigit() else cores


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
