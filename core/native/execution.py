"""One thread per core, each on its own; and an allocator that keeps what it has.

Unpinned threads land on one core under load and cost a factor of two to ten. Temporaries of some megabytes
that go back to the kernel after every operation come back as page faults, which cost more than the operation.
"""

import contextlib
import ctypes
import os
from typing import Any

import torch

from core.contracts.execution import Execution, Forward
from core.native.cores import available_cores


class PinnedExecution(Execution):
    """Sizes torch's thread pool to the cores this process may use, and pins the pool's threads.

    A pool that the environment already describes (OMP_NUM_THREADS, OMP_PROC_BIND) is left as it is.
    """

    def set_up(self) -> None:
        _keep_freed_memory()
        cores = available_cores()
        bound = "OMP_PROC_BIND" in os.environ  # then this thread may have no more than its own core
        if not bound and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() != len(cores):
            torch.set_num_threads(len(cores))
        torch.set_flush_denormal(True)  # as the threads that start now inherit it; see `wrap`
        if not bound and torch.get_num_threads() == len(cores) > 1:
            _pin(cores)
        torch.set_flush_denormal(False)

    def wrap(self, forward: Forward) -> Forward:
        """Numbers too small for the format are zero, which is much faster, but only while a step runs: the
        thread is the caller's, and so is its arithmetic.
        """

        def step(inputs: Any) -> torch.Tensor:
            torch.set_flush_denormal(True)
            try:
                return forward(inputs)
            finally:
                torch.set_flush_denormal(False)

        return step


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_THRESHOLD = 32 * 2**20  # the largest that glibc accepts
_TRIM_THRESHOLD = 512 * 2**20


def _keep_freed_memory() -> None:
    """Serve and keep tensors of up to 32 MiB from the heap, where the C library is glibc; others decide alone."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def _pin(cores: list[int]) -> None:
    """Wake the pool, then give each of the threads it started a core of its own.

    The calling thread stays free to move: it is the caller's, and may do other work.
    """
    before = _threads()
    torch.ones(1 << 20).add_(1.0)
    workers = sorted(_threads() - before - {os.getpid()})
    for core, thread in zip(cores[1:], workers, strict=False):
        os.sched_setaffinity(thread, {core})


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}
