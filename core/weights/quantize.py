"""Quantising at load: a weight's rows in one of the formats that the core makes.

A scale of 8 bits covers the largest element of its row. With 4 bits that would waste most of the sixteen values on
elements that hardly occur, so a group's scale is the one of several whose squared error is least. Works on a slice
of rows at a time, so that a large weight never exists in float32 as a whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.contracts.quantization import QuantizedWeight, WeightFormat

# What a slice's many passes touch stays in a core's cache, and torch takes two threads for a pass at most. Threads
# of our own would wait for the interpreter longer than they compute.
_SLICE_ELEMENTS = 2**16
_CLIPPED = (1.05, 0.95, 0.85)  # parts of a group's extreme that the outermost 4-bit value may stand for
_LEAST = 1e-30  # smaller extremes have a scale of zero in float16


@torch.inference_mode()
def quantize(weight: Tensor, format: WeightFormat) -> QuantizedWeight:
    """A weight [out, in] of any float dtype, on the CPU, in a format that fits its rows.

    Elements that are not finite leave a row or group that is not finite either.
    """
    outputs, inputs = weight.shape
    group, header = format.group_of(inputs), format.header_bytes
    data = torch.empty(outputs, format.bytes_per_row(inputs), dtype=torch.uint8)
    groups = data.view(outputs, inputs // group, -1)
    store = _store_int8 if format.bits == 8 else _store_int4
    rows = max(1, _SLICE_ELEMENTS // inputs)
    for first in range(0, outputs, rows):
        x, stored = weight[first : first + rows], groups[first : first + rows]
        scale = store(
            x.float().reshape(-1, inputs // group, group), stored[:, :, header:], getattr(torch, format.scale)
        )
        stored[:, :, :header] = scale.view(torch.uint8)
    return QuantizedWeight(format=format, data=data, shape=(outputs, inputs))


def stacked(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights of one format and equal inputs, one below the other. A single one is returned as it is."""
    if len(weights) == 1:
        return weights[0]
    data = torch.cat([weight.data for weight in weights])
    shape = (data.shape[0], weights[0].shape[1])
    return QuantizedWeight(format=weights[0].format, data=data, shape=shape)


def _store_int8(x: Tensor, stored: Tensor, dtype: torch.dtype) -> Tensor:
    """x [rows, groups, group] -> stored, the same shape, and scales [rows, groups, 1]. Values from -127 to 127."""
    scale = (x.abs().amax(dim=2, keepdim=True) / 127).to(dtype)
    stored.view(torch.int8).copy_(x.mul(_reciprocal(scale)).round_().clamp_(-127, 127))
    return scale


def _store_int4(x: Tensor, stored: Tensor, dtype: torch.dtype) -> Tensor:
    """x [rows, groups, group] -> stored [rows, groups, group / 2], and scales [rows, groups, 1].

    Values from -8 to 7, stored 8 higher.
    """
    scratch = torch.empty_like(x)
    scale = _best_scale(x, scratch).to(dtype)
    values = _rounded(x, _reciprocal(scale), scratch).add_(8).to(torch.int8).view(torch.uint8)
    low, high = values.chunk(2, dim=2)
    torch.bitwise_or(low, high.bitwise_left_shift_(4), out=stored)
    return scale


def _best_scale(x: Tensor, scratch: Tensor) -> Tensor:
    """x [..., group] -> [..., 1]: the scale that leaves the least squared error, of those tried.

    The extreme element becomes -8, the value farthest from zero, so a scale may be negative. For values v that a
    scale rounds to, the best scale is sum(x * v) / sum(v * v), and it takes sum(x * v)^2 / sum(v * v) off the error.
    """
    lowest, highest = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    extreme = torch.where(-lowest > highest, lowest, highest)
    extreme.masked_fill_(extreme.abs() < _LEAST, 1.0)
    products, squares = x.new_empty(2, len(_CLIPPED), *extreme.shape)
    multiplied = torch.empty_like(x)
    for i, part in enumerate(_CLIPPED):
        values = _rounded(x, -8 / part / extreme, scratch)
        torch.sum(torch.mul(x, values, out=multiplied), dim=-1, keepdim=True, out=products[i])
        torch.sum(values.square_(), dim=-1, keepdim=True, out=squares[i])
    scales = products / squares.clamp_(min=1.0)  # a group of zeros: its scale is zero
    gains = products * scales
    best, gained = scales[0], gains[0]
    for scale, gain in zip(scales[1:], gains[1:], strict=True):
        best, gained = torch.where(gain > gained, scale, best), torch.maximum(gain, gained)
    return best


def _rounded(x: Tensor, inverse: Tensor, out: Tensor) -> Tensor:
    return torch.mul(x, inverse, out=out).round_().clamp_(-8, 7)


def _reciprocal(scale: Tensor) -> Tensor:
    """1 / scale in float32, and 0 for the scale of zeros."""
    return scale.float().reciprocal().masked_fill_(scale == 0, 0.0)
