"""A file as tensors, without copying it: pages come when a tensor is asked for and go when it is let go."""

import mmap
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MADV_POPULATE_READ = 22  # of Linux 5.14 and later


class MappedFile:
    """One file in memory, private to this process: writing to a tensor never reaches the file.

    What is read again begins as the file has it, once no tensor of the first reading is left.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._readers: dict[int, int] = {}  # by offset: how many tensors were made of it and still live

    def tensor(
        self, offset: int, num_bytes: int, dtype: "torch.dtype", shape: tuple[int, ...]
    ) -> "torch.Tensor":
        """The bytes at `offset` as a tensor. The caller has checked that they exist and fill the shape."""
        import torch

        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        self._bring_in(offset, num_bytes)
        part = memoryview(self._bytes)[offset : offset + num_bytes]
        self._readers[offset] = self._readers.get(offset, 0) + 1
        weakref.finalize(part, self._let_go, offset, num_bytes).atexit = False
        raw = torch.frombuffer(part, dtype=torch.uint8)  # holds `part` for as long as anything views it
        aligned = raw if offset % dtype.itemsize == 0 else raw.clone()
        return aligned.view(dtype).view(shape)

    def _bring_in(self, offset: int, num_bytes: int) -> None:
        """Map these pages in one go, a tenth of what it costs one by one. Where the kernel cannot, they come later."""
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if sys.platform == "linux":
            with suppress(OSError):
                self._bytes.madvise(_MADV_POPULATE_READ, first, offset + num_bytes - first)

    def _let_go(self, offset: int, num_bytes: int) -> None:
        """Pages that nobody else sees stop counting as this process's memory."""
        self._readers[offset] -= 1
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if sys.platform == "linux" and self._readers[offset] == 0 and first < last:
            self._bytes.madvise(mmap.MADV_DONTNEED, first, last - first)
