"""Memory of a device that shares the host's: counted by psutil, taken through torch."""

import math
import weakref
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

from core.config import format_bytes
from core.contracts.attention import LayerCache
from core.contracts.memory import Memory, MemoryStatistics
from core.errors import OutOfDeviceMemory


class HostMemory(Memory):
    """Allocates on `torch_device`, up to `limit_bytes` and to what the host has available.

    A device with memory of its own brings its own `Memory`: here its figures would be the host's.
    """

    def __init__(self, torch_device: str, limit_bytes: int | None = None) -> None:
        self._device = torch_device
        self._limit = limit_bytes
        self._allocated = 0

    def statistics(self) -> MemoryStatistics:
        host = psutil.virtual_memory()
        total = host.total if self._limit is None else min(host.total, self._limit)
        free = max(0, min(host.available, total - self._allocated))
        return MemoryStatistics(total=total, allocated=self._allocated, free=free)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        torch_dtype: torch.dtype = getattr(torch, dtype)
        wanted, now = math.prod(shape) * torch_dtype.itemsize, self.statistics()
        # The host would promise more than it has and end the process on first use.
        if wanted > now.free:
            raise self._refusal(wanted, now)
        try:
            tensor = torch.empty(shape, dtype=torch_dtype, device=self._device)
        except (RuntimeError, MemoryError) as error:
            raise self._refusal(wanted, now) from error
        self._allocated += wanted
        weakref.finalize(tensor.untyped_storage(), self._give_back, wanted).atexit = False
        return tensor

    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs:
            return
        sources, destinations = torch.tensor(pairs, device=self._device).unbind(dim=1)
        for cache in caches:
            for storage in (cache.keys, cache.values):
                copied = storage.index_select(cache.block_axis, sources)
                storage.index_copy_(cache.block_axis, destinations, copied)

    def discard_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> None:
        return

    def _give_back(self, count: int) -> None:
        self._allocated -= count

    def _refusal(self, wanted: int, now: MemoryStatistics) -> OutOfDeviceMemory:
        return OutOfDeviceMemory(
            f"{format_bytes(wanted)} do not fit the memory of {self._device}: {format_bytes(now.free)} of "
            f"{format_bytes(now.total)} are free, {format_bytes(now.allocated)} are allocated here; "
            "ask for less (kv_cache_memory, max_num_seqs, max_model_len), or free some"
        )
