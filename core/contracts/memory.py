"""Device memory: how much there is, taking it, and moving whole blocks of the KV cache."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.contracts.attention import LayerCache

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """Bytes on the device: `total` that this process may use, `allocated` through this contract, `free` now."""

    total: int
    allocated: int
    free: int


class Memory(ABC):
    """The memory of one device."""

    @abstractmethod
    def statistics(self) -> MemoryStatistics:
        """Current figures; `free` counts everything on the machine, not only this process."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: str) -> "Tensor":
        """A new tensor with undefined contents, its size a multiple of `Capabilities.alignment_bytes`.

        Raises OutOfDeviceMemory when it does not fit; then nothing was taken.
        """

    @abstractmethod
    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination), in every layer given. Destinations are disjoint from sources."""

    @abstractmethod
    def discard_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> None:
        """These blocks' contents are dead: nothing reads them before they are written again.

        A device may zero, poison or page them out; doing nothing is right too.
        """
