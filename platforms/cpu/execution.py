"""One thread per core, each on its own.

Unpinned threads land on one core under load and cost a factor of two to ten.
"""

import os

import torch

from core.contracts.execution import Execution


class PinnedExecution(Execution):
    """Sizes torch's thread pool to the cores this process may use, and pins the pool's threads.

    A pool that the environment already describes (OMP_NUM_THREADS, OMP_PROC_BIND) is left as it is.
    """

    def set_up(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() != len(cores):
            torch.set_num_threads(len(cores))
        torch.set_flush_denormal(True)
        if "OMP_PROC_BIND" not in os.environ and torch.get_num_threads() == len(cores) > 1:
            _pin(cores)


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
