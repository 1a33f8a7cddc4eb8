"""Which processors a thread each should have: one of every core that this process may use."""

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path


def available_cores() -> list[int]:
    """Processor numbers, one of each core, ascending. A thread that is bound to a core sees only that one."""
    return one_of_each_core(usable_processors())


def usable_processors() -> set[int]:
    """The processor numbers that this process may use: all there are, where the system restricts none, as on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return {*range(os.cpu_count() or 1)}


def hardware_threads(cpu: int) -> set[int]:
    """The processor numbers that share a core with this one, itself among them. Source: Linux, cputopology.rst."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    with contextlib.suppress(OSError, ValueError):
        ranges = [part.split("-") for part in path.read_text().strip().split(",")]
        return {cpu}.union(*(range(int(ends[0]), int(ends[-1]) + 1) for ends in ranges))
    return {cpu}


def one_of_each_core(
    allowed: Collection[int], sharing: Callable[[int], set[int]] = hardware_threads
) -> list[int]:
    """Of the processors that may be used, one for each core: two on a core share its arithmetic and wait in turns."""
    chosen: list[int] = []
    for cpu in sorted(allowed):
        if not sharing(cpu) & {*chosen}:
            chosen.append(cpu)
    return chosen
