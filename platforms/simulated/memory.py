"""Memory with a cap and an alignment, in which whatever nobody has written is poison.

Poison is a NaN of its own bit pattern, so that it is told from a NaN that a model computed and stored. Bytes, which
hold numbers and their scale, are all ones. It is the only mark of what is dead, so it goes with a block that is saved:
what was alive is alive again where it is restored, and what was poison is poison there.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from core.contracts.attention import LayerCache
from core.contracts.memory import HostBlocks, Memory, MemoryStatistics
from core.contracts.platform import Device
from core.errors import ContractViolation, OutOfDeviceMemory
from core.reference.memory import HostMemory
from platforms.simulated.options import Options

_POISON = {
    torch.float32: (torch.int32, 0x7FD5DEAD),
    torch.float16: (torch.int16, 0x7EAD),
    torch.bfloat16: (torch.int16, 0x7FD5),
    torch.uint8: (torch.uint8, 0xFF),
}


def poisoned(tensor: Tensor) -> Tensor:
    """Where a part of the cache holds poison, as bool: its elements, or of bytes its rows."""
    bits, pattern = _POISON[tensor.dtype]
    found = tensor.view(bits) == pattern
    return found.all(dim=-1) if tensor.dtype == torch.uint8 else found


class StrictMemory(Memory):
    """Host memory under `options.memory` bytes. Poison in integers is the largest one."""

    def __init__(self, device: Device, options: Options) -> None:
        self._host = HostMemory(device.torch_device, limit_bytes=options.memory)
        self._options = options
        self.num_allocations = 0

    def statistics(self) -> MemoryStatistics:
        return self._host.statistics()

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        size = math.prod(shape) * getattr(torch, dtype).itemsize
        if size % self._options.alignment:
            raise ContractViolation(
                f"simulated: an allocation of {list(shape)} {dtype} is {size} bytes, "
                f"not a multiple of {self._options.alignment}"
            )
        if self._options.oom_after is not None and self.num_allocations >= self._options.oom_after:
            raise OutOfDeviceMemory(f"simulated: allocation {self.num_allocations + 1} fails (oom_after)")
        tensor = self._host.allocate(shape, dtype)
        self.num_allocations += 1
        if tensor.is_floating_point():
            bits, pattern = _POISON[tensor.dtype]
            tensor.view(bits).fill_(pattern)
            return tensor
        return tensor.fill_(torch.iinfo(tensor.dtype).max)

    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        sources, destinations = {source for source, _ in pairs}, [destination for _, destination in pairs]
        if len(set(destinations)) < len(destinations) or sources & set(destinations):
            raise ContractViolation(
                f"simulated: copies {list(pairs)} write a block twice, or one that they read"
            )
        _check_blocks("copied", caches, [*sources, *destinations])
        self._host.copy_blocks(caches, pairs)

    def save_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> HostBlocks:
        _check_blocks("saved", caches, blocks)
        saved = self._host.save_blocks(caches, blocks)
        for cache, layer in zip(caches, saved.layers, strict=True):
            for storage in layer:
                dead = poisoned(storage).movedim(cache.block_axis, 0).flatten(1).all(dim=1)
                if bool(dead.any()):
                    raise ContractViolation(
                        f"simulated: block {blocks[int(dead.nonzero()[0])]} is saved, "
                        "which was discarded or never written"
                    )
        return saved

    def restore_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int], saved: HostBlocks) -> None:
        _check_blocks("restored", caches, blocks)
        if len(set(blocks)) < len(blocks):
            raise ContractViolation(f"simulated: blocks {list(blocks)} are restored, one of them twice")
        self._host.restore_blocks(caches, blocks, saved)

    def discard_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> None:
        _check_blocks("discarded", caches, blocks)
        index = torch.tensor(list(blocks), dtype=torch.int64)
        for cache in caches:
            for storage in (cache.keys, cache.values):
                bits, pattern = _POISON[storage.dtype]
                storage.view(bits).index_fill_(cache.block_axis, index.to(storage.device), pattern)


def _check_blocks(verb: str, caches: Sequence[LayerCache], blocks: Iterable[int]) -> None:
    for cache in caches:
        count = cache.keys.shape[cache.block_axis]
        bad = [block for block in blocks if not 0 < block < count]
        if bad:
            raise ContractViolation(
                f"simulated: block {bad[0]} is {verb}; blocks 1 to {count - 1} are sequences', 0 is nobody's"
            )
