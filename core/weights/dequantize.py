"""GGUF's quantised blocks into tensors.

The common formats are unpacked by torch, several times faster than by numpy; the others by the gguf package,
whose results are the reference: ours are equal to the bit. Works on a slice of blocks at a time, so that
a large weight never exists in float32 as a whole.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import BadCheckpoint
from core.weights.gguf_file import BF16, F16, F32, F64, Q4_0, Q4_1, Q8_0, block_layout

PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16, F64: torch.float64}
"""Tensor types that need no unpacking."""

# Small enough that torch starts no threads for a slice: thousands of short parallel regions lose far more
# on a busy machine than they gain on an idle one.
_SLICE_ELEMENTS = 2**15


def dequantize(stored: Tensor, kind: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Blocks as they lie in the file -> a tensor of this shape and dtype.

    stored  [num_bytes], uint8
    Raises BadCheckpoint for a type that nothing here can unpack.
    """
    per_block, block_bytes = block_layout(kind)
    unpack = _UNPACK.get(kind) or _gguf_unpack(kind)
    blocks = stored.view(-1, block_bytes)
    result = torch.empty(shape, dtype=dtype)
    flat = result.view(-1, per_block)
    step = max(1, _SLICE_ELEMENTS // per_block)
    for start in range(0, blocks.shape[0], step):
        flat[start : start + step] = unpack(blocks[start : start + step])
    return result


def _q4_0(blocks: Tensor) -> Tensor:
    """[n, 18] -> [n, 32]: float16 scale, then 16 bytes of two 4-bit values, 8 too high."""
    return (_nibbles(blocks[:, 2:]) - 8).mul_(_halves(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    """[n, 20] -> [n, 32]: float16 scale and minimum, then 16 bytes of two 4-bit values."""
    return _nibbles(blocks[:, 4:]).mul_(_halves(blocks, 0)).add_(_halves(blocks, 1))


def _q8_0(blocks: Tensor) -> Tensor:
    """[n, 34] -> [n, 32]: float16 scale, then 32 signed bytes."""
    return blocks[:, 2:].view(torch.int8).to(torch.float32).mul_(_halves(blocks, 0))


def _halves(blocks: Tensor, index: int) -> Tensor:
    return blocks[:, 2 * index : 2 * index + 2].view(torch.float16).to(torch.float32)


def _nibbles(packed: Tensor) -> Tensor:
    """[n, 16] bytes -> [n, 32] float32: all low halves, then all high halves."""
    both = torch.empty(packed.shape[0], 2, packed.shape[1])
    both[:, 0] = packed & 15
    both[:, 1] = packed >> 4
    return both.view(packed.shape[0], -1)


_UNPACK: dict[int, Callable[[Tensor], Tensor]] = {Q4_0: _q4_0, Q4_1: _q4_1, Q8_0: _q8_0}


def _gguf_unpack(kind: int) -> Callable[[Tensor], Tensor]:
    import numpy as np
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    def unpack(blocks: Tensor) -> Tensor:
        # One long row: the package would otherwise work on sixteen blocks at a time.
        row: Any = blocks.contiguous().view(1, -1).numpy()
        try:
            with np.errstate(all="ignore"):
                return torch.as_tensor(quants.dequantize(row, quant)).view(blocks.shape[0], -1)
        except NotImplementedError as error:
            raise BadCheckpoint(f"tensor type {quant.name} cannot be unpacked by the gguf package") from error

    quant = GGMLQuantizationType(kind)
    return unpack
