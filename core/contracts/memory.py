"""Device memory: how much there is, taking it, and moving whole blocks of the KV cache."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.contracts.attention import LayerCache
from core.errors import ContractViolation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """Bytes on the device: `total` that this process may use, `allocated` through this contract, `free` now.

    `free` and `allocated` together never exceed `total`.
    """

    total: int
    allocated: int
    free: int


@dataclass(frozen=True, slots=True)
class HostBlocks:
    """Blocks of some layers' caches, kept by the host. They are nobody's on the device: nothing there changes them.

    count   how many blocks
    layers  per cache, in the order given, its keys and its values: tensors on the host, of the dtype and shape of
            the cache's but that the block axis, where it was, counts these blocks alone, in the order given
    """

    count: int
    layers: "tuple[tuple[Tensor, Tensor], ...]"


class Memory(ABC):
    """The memory of one device."""

    @abstractmethod
    def statistics(self) -> MemoryStatistics:
        """Current figures; `free` counts everything on the machine, not only this process."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: str) -> "Tensor":
        """A new dense tensor with undefined contents, its size a multiple of `Capabilities.alignment_bytes`.

        Raises OutOfDeviceMemory when it does not fit; then nothing was taken.
        """

    @abstractmethod
    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination), in every layer given. Destinations are disjoint from sources."""

    def save_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> HostBlocks:
        """Copy whole blocks to the host, of every layer given. Every bit is kept, whatever it means.

        The copy is complete when this returns. Each of the blocks has been written, at least in part.
        """
        index = _index(caches, blocks)

        def saved(storage: "Tensor", axis: int) -> "Tensor":
            return storage.index_select(axis, index).to("cpu")

        layers = [
            (saved(cache.keys, cache.block_axis), saved(cache.values, cache.block_axis)) for cache in caches
        ]
        return HostBlocks(count=len(blocks), layers=tuple(layers))

    def restore_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int], saved: HostBlocks) -> None:
        """Write saved blocks back, the i-th of them into blocks[i], whatever its number was.

        caches  of the layers that were saved, in the same order
        blocks  as many as were saved, all different

        Raises ContractViolation when there are more or fewer layers or blocks than were saved; then nothing was
        written.
        """
        if (len(caches), len(blocks)) != (len(saved.layers), saved.count):
            raise ContractViolation(
                f"{saved.count} blocks of {len(saved.layers)} layers were saved, and are to be restored into "
                f"{len(blocks)} blocks of {len(caches)} layers; as many are expected"
            )
        index = _index(caches, blocks)
        for cache, kept in zip(caches, saved.layers, strict=True):
            for storage, blocks_of_it in zip((cache.keys, cache.values), kept, strict=True):
                storage.index_copy_(cache.block_axis, index, blocks_of_it.to(storage.device))

    @abstractmethod
    def discard_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> None:
        """These blocks' contents are dead: nothing reads them before they are written again.

        A device may zero, poison or page them out; doing nothing is right too.
        """


def _index(caches: Sequence[LayerCache], blocks: Sequence[int]) -> "Tensor":
    """Block numbers, int64, where the caches are."""
    import torch

    return torch.tensor(list(blocks), dtype=torch.int64, device=caches[0].keys.device if caches else None)
