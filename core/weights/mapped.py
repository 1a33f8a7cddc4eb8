"""A file as tensors, without copying it: the operating system brings pages in when they are read."""

import mmap
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MADV_POPULATE_READ = 22  # of Linux 5.14 and later


class MappedFile:
    """One file in memory, private to this process: writing to a tensor never reaches the file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(
        self, offset: int, num_bytes: int, dtype: "torch.dtype", shape: tuple[int, ...]
    ) -> "torch.Tensor":
        """The bytes at `offset` as a tensor. The caller has checked that they exist and fill the shape."""
        import torch

        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        self._bring_in(offset, num_bytes)
        raw = torch.frombuffer(self._bytes, dtype=torch.uint8, count=num_bytes, offset=offset)
        aligned = raw if offset % dtype.itemsize == 0 else raw.clone()
        return aligned.view(dtype).view(shape)

    def _bring_in(self, offset: int, num_bytes: int) -> None:
        """Map these pages in one go, a tenth of what it costs one by one. Where the kernel cannot, they come later."""
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if sys.platform == "linux":
            with suppress(OSError):
                self._bytes.madvise(_MADV_POPULATE_READ, first, offset + num_bytes - first)
