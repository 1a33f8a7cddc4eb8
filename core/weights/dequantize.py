"""Quantised weights into tensors: the declared formats, and whatever else GGUF files hold.

The declared formats are unpacked by torch, several times faster than by numpy; the others by the gguf package,
whose results are the reference: ours are equal to the bit. Works on a slice of blocks at a time, so that
a large weight never exists in float32 as a whole.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.contracts.quantization import QuantizedWeight, WeightFormat
from core.errors import BadCheckpoint
from core.weights.gguf_file import BF16, DECLARED, F16, F32, F64, block_layout

PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16, F64: torch.float64}
"""GGUF's tensor types that need no unpacking."""

# Small enough that torch starts no threads for a slice: thousands of short parallel regions lose far more
# on a busy machine than they gain on an idle one.
_SLICE_ELEMENTS = 2**15

_Unpack = Callable[[Tensor], Tensor]  # blocks [n, block_bytes], uint8 -> [n, per_block], float32


def dequantized(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """A quantised weight as a tensor [out, in] of this dtype, on the device where it is."""
    group = weight.format.group_of(weight.shape[1])
    blocks = weight.data.view(-1, weight.format.bytes_per_row(group))
    return _unpacked(blocks, group, partial(_unpack, weight.format), weight.shape, dtype)


def dequantize(stored: Tensor, kind: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """GGUF's blocks as they lie in the file -> a tensor of this shape and dtype.

    stored  [num_bytes], uint8
    Raises BadCheckpoint for a type that nothing here can unpack.
    """
    per_block, block_bytes = block_layout(kind)
    unpack = partial(_unpack, DECLARED[kind]) if kind in DECLARED else _gguf_unpack(kind)
    return _unpacked(stored.view(-1, block_bytes), per_block, unpack, shape, dtype)


def _unpacked(
    blocks: Tensor, per_block: int, unpack: _Unpack, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    result = torch.empty(shape, dtype=dtype, device=blocks.device)
    flat = result.view(-1, per_block)
    step = max(1, _SLICE_ELEMENTS // per_block)
    for start in range(0, blocks.shape[0], step):
        flat[start : start + step] = unpack(blocks[start : start + step])
    return result


def _unpack(format: WeightFormat, blocks: Tensor) -> Tensor:
    """Groups of a declared format: [n, header + values] -> [n, group]."""
    header = format.header_bytes // (2 if format.minimum else 1)
    values, scale = blocks[:, format.header_bytes :], _number(blocks[:, :header], format)
    if format.bits == 8:
        return values.view(torch.int8).to(torch.float32).mul_(scale)
    if format.minimum:
        return _nibbles(values).mul_(scale).add_(_number(blocks[:, header : 2 * header], format))
    return (_nibbles(values) - 8).mul_(scale)


def _number(part: Tensor, format: WeightFormat) -> Tensor:
    """A column of scales or minimums: [n, 2 or 4] bytes -> [n, 1]."""
    return part.contiguous().view(getattr(torch, format.scale)).to(torch.float32)


def _nibbles(packed: Tensor) -> Tensor:
    """[n, group / 2] bytes -> [n, group] float32: all low halves, then all high halves."""
    both = torch.empty(packed.shape[0], 2, packed.shape[1], device=packed.device)
    both[:, 0] = packed & 15
    both[:, 1] = packed >> 4
    return both.view(packed.shape[0], -1)


def _gguf_unpack(kind: int) -> _Unpack:
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
