"""Quantising at load: a weight's rows in one of the formats that the core makes.

A scale of 8 bits covers the largest element of its row. With 4 bits that would waste most of the sixteen values on
elements that hardly occur, so a group's scale is the one of several whose squared error is least. Works on a slice
of rows at a time, so that a large weight never exists in float32 as a whole.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from core.contracts.quantization import QuantizedWeight, WeightFormat

# A slice's many passes stay in a core's cache, and torch starts no threads for any: a barrier after each would cost
# a busy machine seconds. Our own threads wait for one another once per weight.
_SLICE_ELEMENTS = 2**15
_MOST_THREADS = 8  # more would wait for the interpreter
_CLIPPED = (1.05, 0.95, 0.85)  # parts of a group's extreme that the outermost 4-bit value may stand for


def quantize(weight: Tensor, format: WeightFormat) -> QuantizedWeight:
    """A weight [out, in] of any float dtype, on the CPU, in a format that fits its rows.

    Elements that are not finite leave a row or group that is not finite either.
    """
    outputs, inputs = weight.shape
    data = torch.empty(outputs, format.bytes_per_row(inputs), dtype=torch.uint8)
    rows = max(1, _SLICE_ELEMENTS // inputs)
    threads = max(1, min(_MOST_THREADS, torch.get_num_threads(), -(-outputs // rows)))
    with ThreadPoolExecutor(threads) as pool:
        parts = [slice(first, first + rows) for first in range(0, outputs, rows)]
        list(pool.map(partial(_store, format), [weight[p] for p in parts], [data[p] for p in parts]))
    return QuantizedWeight(format=format, data=data, shape=(outputs, inputs))


def stacked(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights of one format and equal inputs, one below the other. A single one is returned as it is."""
    if len(weights) == 1:
        return weights[0]
    data = torch.cat([weight.data for weight in weights])
    shape = (data.shape[0], weights[0].shape[1])
    return QuantizedWeight(format=weights[0].format, data=data, shape=shape)


@torch.inference_mode()
def _store(format: WeightFormat, rows: Tensor, data: Tensor) -> None:
    """rows [n, in] -> data [n, bytes_per_row]."""
    group = format.group_of(rows.shape[1])
    store = _store_int8 if format.bits == 8 else _store_int4
    store(rows.float().reshape(-1, group), data.view(-1, format.bytes_per_row(group)), format)


def _store_int8(x: Tensor, stored: Tensor, format: WeightFormat) -> None:
    """x [n, group] -> stored [n, header + group]; values from -127 to 127."""
    scale = (x.abs().amax(dim=1, keepdim=True) / 127).to(getattr(torch, format.scale))
    values = (x * _reciprocal(scale.float())).round_().clamp_(-127, 127)
    stored[:, : format.header_bytes] = scale.view(torch.uint8)
    stored[:, format.header_bytes :] = values.to(torch.int8).view(torch.uint8)


def _store_int4(x: Tensor, stored: Tensor, format: WeightFormat) -> None:
    """x [n, group] -> stored [n, header + group / 2]; values from -8 to 7, stored 8 higher."""
    scale = _best_scale(x).to(getattr(torch, format.scale))
    values = _rounded(x, _reciprocal(scale.float())).add_(8).to(torch.uint8)
    low, high = values.chunk(2, dim=1)
    stored[:, : format.header_bytes] = scale.view(torch.uint8)
    stored[:, format.header_bytes :] = high.bitwise_left_shift_(4).bitwise_or_(low)


def _best_scale(x: Tensor) -> Tensor:
    """x [n, group] -> [n, 1]: the scale that leaves the least squared error, of those tried.

    The extreme element becomes -8, the value farthest from zero, so a scale may be negative. For values v that a
    scale rounds to, the best scale is sum(x * v) / sum(v * v), and it takes sum(x * v)^2 / sum(v * v) off the error.
    """
    lowest, highest = x.aminmax(dim=1, keepdim=True)
    extreme = torch.where(-lowest > highest, lowest, highest)
    extreme = torch.where(extreme == 0, 1.0, extreme)  # zeros round to zeros by any scale
    inverse, best, gained = -8 / extreme, extreme / -8, torch.zeros_like(extreme)
    for part in _CLIPPED:
        values = _rounded(x, inverse / part)
        product, squares = _dot(x, values), _dot(values, values)
        scale = product / squares
        gain = product * scale
        best, gained = torch.where(gain > gained, scale, best), torch.maximum(gain, gained)
    return best


def _rounded(x: Tensor, inverse: Tensor) -> Tensor:
    return (x * inverse).round_().clamp_(-8, 7)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, keepdim=True)


def _reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for the scale of zeros."""
    return torch.where(scale == 0, 0.0, scale.reciprocal())
