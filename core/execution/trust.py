"""A platform's kernels, tried before anybody relies on them: some cases of each, once per machine and version.

One that gives wrong numbers, or none, is left out with the reason, and the reference serves instead. What was found is
remembered in the cache, under everything that it could depend on, so that a start costs a look at a file.
"""

import hashlib
import json
import logging
import os
import platform as machine
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch

import core
from core.contracts.kernels import Implementation, Kernel, KernelRequest
from core.contracts.platform import Device, Platform
from core.errors import ConfigError
from core.integrity import HOUSE
from core.weights.cache import cache_dir, make_private

if TYPE_CHECKING:
    from core.conformance import Result
    from core.conformance.kernels import Side

log = logging.getLogger(__name__)

CASES = 2
"""How many cases of a kernel are tried; conformance tries all of them."""


def distrusted(
    platform: Platform, device: Device, dtype: str, offered: Mapping[str, Implementation]
) -> dict[str, str]:
    """Why a platform's version of a kernel is not to be used, by the kernel's name. Empty where all is well.

    Those that come with the core are not tried again: its own tests do, in every run.
    """
    if not offered or type(platform).__module__.partition(".")[0] in HOUSE:
        return {}
    path = cache_dir() / "trials" / f"{_key(platform, device, dtype, offered)}.json"
    known = _remembered(path)
    if known is None:
        known = dict(_tried(platform, device, dtype, offered))
        _remember(path, known)
    for kernel, reason in known.items():
        _warn(platform.name, kernel, reason)
    return known


@cache
def _warn(platform: str, kernel: str, reason: str) -> None:
    """Once in a process, however many models it loads."""
    log.warning("platform %s: its kernel %s %s; the reference takes its place", platform, kernel, reason)


def rejection(version: Implementation, request: KernelRequest) -> str | None:
    """Why a platform's version of a kernel is not for this request, by its own word or because it has none."""
    try:
        return version.rejects(request)
    except Exception as error:
        return f"cannot say whether it serves this: {type(error).__name__}: {error}"


def _tried(
    platform: Platform, device: Device, dtype: str, offered: Mapping[str, Implementation]
) -> Iterator[tuple[str, str]]:
    """(kernel, what is wrong) of those that are."""
    from core.conformance.kernels import platform_side
    from core.reference import KERNELS

    side = platform_side(platform, device)
    for name, version in offered.items():
        for result in islice(_results(KERNELS[name], version, dtype, side), CASES):
            if result.problem:
                yield name, f"is wrong: {result.case}: {result.problem}"
                break


def _results(kernel: Kernel, version: Implementation, dtype: str, side: "Side") -> "Iterator[Result]":
    """What comes of the cases that the version does not reject."""
    from core.conformance.kernels import cases_of, check_case

    for case, tolerance in cases_of(kernel, dtype, side, seed=0):
        spec = side.spec(case, dtype)
        if rejection(version, KernelRequest(dtype=dtype, attention=() if spec is None else (spec,))):
            continue
        result = check_case(kernel, version.function, case, tolerance, dtype, side)
        if not result.unsupported:
            yield result


def _remembered(path: Path) -> dict[str, str] | None:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    return {str(name): str(reason) for name, reason in cast(dict[Any, Any], found).items()}


def _remember(path: Path, found: dict[str, str]) -> None:
    """Written whole or not at all; a cache that cannot be written costs a trial each time."""
    with suppress(OSError, ConfigError):
        make_private(path.parent)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(path)


def _key(platform: Platform, device: Device, dtype: str, offered: Mapping[str, Any]) -> str:
    facts = [
        core.__version__,
        torch.__version__,
        sys.version,
        platform.name,
        device.name,
        dtype,
        machine.node(),
        machine.machine(),
        machine.release(),
        *sorted(offered),
    ]
    for package in (type(platform).__module__, "core"):
        facts += _stamps(import_module(package.partition(".")[0]))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _stamps(module: ModuleType) -> Iterator[str]:
    """Names, sizes and times of a package's files, or of the one file that a module is."""
    for path in _files(module):
        with suppress(OSError):
            status = os.stat(path)
            yield f"{path} {status.st_size} {status.st_mtime_ns}"


def _files(module: ModuleType) -> Iterator[str]:
    if not hasattr(module, "__path__"):
        yield str(module.__file__)
        return
    for root in module.__path__:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            yield from (os.path.join(folder, name) for name in sorted(names))
