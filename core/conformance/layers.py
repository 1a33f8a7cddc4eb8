"""Caches of several layers full of random bytes, what is in them, and what should be once blocks have moved."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from core.contracts.attention import Attention, LayerCache
from core.contracts.memory import Memory

_LAYERS = 3
_NUM_BLOCKS = 12


class Layers:
    """Layers that a memory allocated, each as an attention lays it out. All but the last are `given` to be moved.

    axis  which axis counts blocks, of a storage and of its bytes
    """

    def __init__(self, memory: Memory, attention: Attention, alignment: int, seed: int) -> None:
        one = attention.layout(1)
        name = one.dtype or attention.spec.dtype
        self.dtype: torch.dtype = getattr(torch, name)
        multiple = alignment // math.gcd(alignment, math.prod(one.shape) * self.dtype.itemsize)
        self.num_blocks = -(-_NUM_BLOCKS // multiple) * multiple
        layout = attention.layout(self.num_blocks)
        self.axis = layout.block_axis
        self.all = [
            LayerCache(memory.allocate(layout.shape, name), memory.allocate(layout.shape, name), self.axis)
            for _ in range(_LAYERS + 1)
        ]
        self.given = self.all[:-1]
        self._generator = torch.Generator().manual_seed(seed)

    def fill(self) -> list[Tensor]:
        """New random bytes everywhere. Returns what is there now, as `bits` does."""
        for storage in self._storages():
            shape = (*storage.shape[:-1], storage.shape[-1] * self.dtype.itemsize)
            noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=self._generator)
            storage.copy_(noise.view(self.dtype))
        return self.bits()

    def bits(self) -> list[Tensor]:
        """The keys and the values of each layer in turn, as bytes on the host: uint8, the last axis longer."""
        return [storage.to("cpu", copy=True).contiguous().view(torch.uint8) for storage in self._storages()]

    def some(self, count: int) -> list[int]:
        """Different blocks, none of them block 0, in no order."""
        order = torch.randperm(self.num_blocks - 1, generator=self._generator)[:count]
        return [int(block) + 1 for block in order]

    def difference(self, expected: Sequence[Tensor]) -> str:
        """Where the bytes are not as expected, or ""."""
        for i, (now, right) in enumerate(zip(self.bits(), expected, strict=True)):
            wrong = (now != right).movedim(self.axis, 0).flatten(1).any(dim=1)
            if bool(wrong.any()):
                listed = ", ".join(str(int(block)) for block in wrong.nonzero())
                whose = f"{'values' if i % 2 else 'keys'} of layer {i // 2}"
                other = " (a layer that was not given)" if i // 2 == _LAYERS else ""
                return f"{whose}{other} are not as expected in block {listed} of {self.num_blocks}"
        return ""

    def _storages(self) -> list[Tensor]:
        return [storage for cache in self.all for storage in (cache.keys, cache.values)]


def with_blocks(
    base: Sequence[Tensor], source: Sequence[Tensor], pairs: Iterable[tuple[int, int]], axis: int
) -> list[Tensor]:
    """Bytes as in `base`, but in the layers given with blocks of `source` in place, for each pair (from, to)."""
    expected, moved = [tensor.clone() for tensor in base], list(pairs)
    for right, origin in list(zip(expected, source, strict=True))[: 2 * _LAYERS]:
        for block, to in moved:
            right.select(axis, to).copy_(origin.select(axis, block))
    return expected
