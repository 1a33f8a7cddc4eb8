"""What a certificate states beside its results: the machine, the distribution, and the platform's own code."""

import hashlib
import platform as host
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType

import msgspec
import psutil

from core import hookspecs
from core.config import format_bytes
from core.contracts.platform import Platform

_NOT_SOURCE = frozenset({"", ".json", ".md", ".pyc", ".rst", ".so", ".toml", ".txt", ".typed"})


class Lines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lines of a package's files: Python, and sources in other languages."""

    python: int
    other: int

    def __str__(self) -> str:
        others = f", and {self.other:,} in other languages" if self.other else ""
        return f"{self.python:,} lines of Python{others}"


def machine() -> dict[str, str]:
    """Processor, memory, system, and what runs on them. Imports nothing to learn its version."""
    return {
        "processor": _processor() or host.processor() or host.machine(),
        "memory": format_bytes(psutil.virtual_memory().total),
        "system": host.platform(),
        "python": host.python_version(),
        "torch": distribution_version("torch"),
    }


def distribution_version(name: str) -> str:
    """The version of an installed distribution; "unknown" where there is none of that name."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def lines_of(platform: Platform) -> Lines:
    """The lines of the package that declares the platform: the entry point's, else the one its class is in."""
    python = other = 0
    for name, text in _sources(type(platform).__module__):
        count = len(text.splitlines())
        if name.endswith(".py"):
            python += count
        else:
            other += count
    return Lines(python=python, other=other)


def sources_sha256(module: str) -> str:
    """Of the source files of a module's package: their names, as seen from the package, and their contents."""
    found = hashlib.sha256()
    for name, text in _sources(module):
        contents = text.encode()
        found.update(f"{name}\0{len(contents)}\0".encode() + contents)
    return found.hexdigest()


def _sources(module: str) -> Iterator[tuple[str, str]]:
    """Name and text of every source file of the package, by name, or of the one file of a module that is in none."""
    file = getattr(_package(module), "__file__", None)
    if file is None:
        return
    folder, packaged = Path(file).parent, Path(file).name == "__init__.py"
    paths = folder.rglob("*") if packaged else (Path(file),)
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        if path.suffix in _NOT_SOURCE or "__pycache__" in path.parts:
            continue
        try:
            yield path.relative_to(folder).as_posix(), path.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue


def _package(module: str) -> ModuleType | None:
    """What an entry point names of this module, or the package around it. All of these are imported already."""
    declared = [point.module for point in entry_points(group=hookspecs.GROUP)]
    owners = [name for name in declared if module == name or module.startswith(f"{name}.")]
    around = module.rpartition(".")[0] or module
    return sys.modules.get(max(owners, key=len, default=around)) or sys.modules.get(module)


def _processor() -> str | None:
    """The first processor's name in /proc/cpuinfo, where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    named = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in named if key.strip() == "model name"), None)
