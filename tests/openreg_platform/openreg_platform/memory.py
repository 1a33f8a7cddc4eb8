"""The device's memory: counted where it is taken, poisoned where it is discarded."""

import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from core.contracts.attention import LayerCache
from core.contracts.memory import Memory, MemoryStatistics
from core.errors import OutOfDeviceMemory
from openreg_platform.device import MODULE, NAME
from openreg_platform.tensor import on_host


class OpenregMemory(Memory):
    """What this process has taken of it, and what is left."""

    def __init__(self) -> None:
        self._allocated = 0

    def statistics(self) -> MemoryStatistics:
        free, total = MODULE.mem_get_info()
        return MemoryStatistics(total=total, allocated=self._allocated, free=free)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        try:
            tensor = torch.empty(shape, dtype=kind, device=NAME)
        except RuntimeError as error:
            raise OutOfDeviceMemory(f"{list(shape)} of {dtype} do not fit: {error}") from error
        size = math.prod(shape) * kind.itemsize
        self._allocated += size
        weakref.finalize(on_host(tensor).untyped_storage(), self._give_back, size).atexit = False
        return tensor

    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        sources, destinations = [source for source, _ in pairs], [destination for _, destination in pairs]
        for cache in caches:
            for storage in (on_host(cache.keys), on_host(cache.values)):
                blocks = storage.movedim(cache.block_axis, 0)
                blocks[destinations] = blocks[sources]

    def discard_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> None:
        for cache in caches:
            for storage in (on_host(cache.keys), on_host(cache.values)):
                storage.movedim(cache.block_axis, 0)[list(blocks)] = torch.nan

    def _give_back(self, size: int) -> None:
        self._allocated -= size
