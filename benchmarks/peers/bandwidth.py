"""How fast this machine reads memory right now: numpy sums a buffer, one thread to a core.

    python bandwidth.py --threads 2

Prints JSON: {"best_gb_s": ..., "median_gb_s": ...}. It is the same reader every time, which is what counts here.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
from numpy.typing import NDArray

REPEATS = 7


def reader(core: int, size: int) -> NDArray[np.int64]:
    """Pin this thread, and give it memory that it touched first."""
    os.sched_setaffinity(0, {core})
    return np.ones(size // 8, dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mib", type=int, default=1024, help="in all, many times the caches [default: 1024]")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: given.threads]
    size = (given.mib << 20) // len(cores)
    pools = [ThreadPoolExecutor(1) for _ in cores]
    buffers = [pool.submit(reader, core, size).result() for pool, core in zip(pools, cores, strict=True)]
    speeds: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        running = [pool.submit(np.sum, part) for pool, part in zip(pools, buffers, strict=True)]
        for sums in running:
            sums.result()
        speeds.append(size * len(cores) / (time.perf_counter() - start) / 1e9)
    for pool in pools:
        pool.shutdown()
    print(json.dumps({"best_gb_s": round(max(speeds), 1), "median_gb_s": round(median(speeds), 1)}))


if __name__ == "__main__":
    main()
