"""Cases with quantised weights, in a format that a platform takes, and how close their results must be.

A kernel may round activations to 8 bits: symmetrically, so that the largest magnitude of a row, or of any part of it,
becomes 127. Normal activations show what that costs. Whole ones up to 127 lose nothing by it, whatever shares a
scale, so that with them everything else shows. Knows no kernel's innards: weights are made up in their stored form.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from core.contracts.attention import AttentionShape
from core.contracts.kernels import (
    CachedSequences,
    Case,
    DecoderLayerWeights,
    MoeWeights,
    Routing,
    Tolerance,
)
from core.contracts.quantization import QuantizedWeight, Weight, WeightFormat
from core.reference import KERNELS
from core.reference.inputs import Inputs

_EPS = 1e-5

# Room for activations in 8 bits, in results of order 1. The largest of a row of normal numbers is about 4, so a step
# is 4 / 127, and rounding to it errs by step / sqrt(12) = 0.009 on average. Rows of weights have norm 1, so that is
# also by how much a sum is off: six times it is never seen by chance, and an error in a format is of order 1. The
# others round several times, one after the other, and products of activations reach twice as far as their factors.
_ROUNDED_ACTIVATIONS = {"linear": 0.055, "gated_mlp": 0.15, "experts": 0.15, "moe": 0.3, "decoder_layer": 0.2}


def quantized_cases(
    kernel: str, format: WeightFormat, dtype: str, seed: int
) -> Iterator[tuple[Case, Tolerance]]:
    """Inputs to try a kernel on with weights in this format; none for a kernel that takes no weights."""
    if kernel not in _CASES:
        return
    exact, inputs = KERNELS[kernel].tolerance[dtype], Inputs(dtype, seed)
    room = exact.absolute + _ROUNDED_ACTIVATIONS[kernel]
    for case in _CASES[kernel](inputs, format):
        yield case, Tolerance(relative=exact.relative, absolute=room)
    if kernel == "linear":
        yield from ((case, exact) for case in _whole_linear(inputs, format))


def stored_weight(
    inputs: Inputs, format: WeightFormat, outputs: int, width: int, *, rms: float
) -> QuantizedWeight:
    """A weight [outputs, width] of this root mean square, with scales that differ from group to group.

    Values take every byte that the format allows. Scales of 4 bits have either sign, as `quantize` makes them.
    """
    group, generator = format.group_of(width), inputs.generator
    data = torch.empty(outputs, format.bytes_per_row(width), dtype=torch.uint8)
    groups = data.view(-1, format.bytes_per_row(group))
    lowest = -127 if format.bits == 8 else -128
    shape = (len(groups), groups.shape[1] - format.header_bytes)
    values = torch.randint(lowest, 128, shape, generator=generator, dtype=torch.int8)
    groups[:, format.header_bytes :] = values.view(torch.uint8)
    # The standard deviation of values is that of uniform ones.
    scale = (0.5 + torch.rand(len(groups), generator=generator)) * rms / (73.3 if format.bits == 8 else 4.6)
    if format.minimum:
        lift = 7.5 + torch.randn(len(groups), generator=generator)
        header = torch.stack((scale, -lift * scale), dim=1)
    elif format.bits == 4:
        header = (scale * torch.randn(len(groups), generator=generator).sign())[:, None]
    else:
        header = scale[:, None]
    groups[:, : format.header_bytes] = header.to(getattr(torch, format.scale)).view(torch.uint8)
    return QuantizedWeight(format=format, data=data, shape=(outputs, width))


def _weight(inputs: Inputs, format: WeightFormat, outputs: int, width: int) -> Weight:
    """A projection in this format. Rows that its groups do not fill are a tensor, as the loader has it."""
    if not format.fits(width):
        return inputs.weight(outputs, width)
    return stored_weight(inputs, format, outputs, width, rms=width**-0.5)


def _linear_shapes(format: WeightFormat) -> Iterator[tuple[int, int, int]]:
    yield from ((0, 128, 64), (1, 128, 96), (1, 1024, 1), (3, 384, 33), (17, 640, 160))
    if format.group is None:
        yield from ((3, 100, 33), (5, 1, 7))


def _linear(inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    for rows, width, outputs in _linear_shapes(format):
        for biased in (False, True):
            bias = inputs.normal(outputs, scale=0.5) if biased else None
            yield Case(
                name=f"{rows}x{width}->{outputs} as {format.name}{' with bias' if biased else ''}",
                prepare=(_weight(inputs, format, outputs, width), bias),
                arguments=(inputs.normal(rows, width),),
            )


def _whole_linear(inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    """Activations that 8 bits hold. Their weights are so small that scales in float16 fall below its normal range."""
    for rows, width, outputs in _linear_shapes(format):
        x = (inputs.integers(255, rows, width) - 127).to(inputs.dtype)
        x[:, ::32] = 127.0  # the largest of whatever shares a scale, which therefore is 1
        weight = stored_weight(inputs, format, outputs, width, rms=width**-0.5 / 73.3)
        name = f"{rows}x{width}->{outputs} as {format.name}, whole activations"
        yield Case(name=name, prepare=(weight, None), arguments=(x,))


def _gated_mlp(inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    for rows, hidden, intermediate in ((0, 128, 128), (1, 128, 256), (3, 256, 100), (17, 384, 640)):
        yield Case(
            name=f"{rows}x{hidden}x{intermediate} as {format.name}",
            prepare=(
                _weight(inputs, format, 2 * intermediate, hidden),
                _weight(inputs, format, hidden, intermediate),
            ),
            arguments=(inputs.normal(rows, hidden),),
        )


def _mixture(inputs: Inputs, format: WeightFormat, hidden: int, intermediate: int) -> MoeWeights:
    return MoeWeights(
        router=inputs.weight(6, hidden).float(),
        bias=None,
        gate_up=tuple(_weight(inputs, format, 2 * intermediate, hidden) for _ in range(6)),
        down=tuple(_weight(inputs, format, hidden, intermediate) for _ in range(6)),
        shared_gate_up=_weight(inputs, format, 512, hidden),
        shared_down=_weight(inputs, format, hidden, 256),
    )


def _experts(inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    for rows, hidden, intermediate in ((0, 128, 128), (1, 128, 256), (9, 128, 100)):
        weights = _mixture(inputs, format, hidden, intermediate)
        counts = inputs.normal(rows, 2).float().softmax(dim=-1)
        ids = inputs.normal(rows, 6).float().argsort(dim=-1)[:, :2]
        yield Case(
            name=f"{rows}x{hidden}x{intermediate}, 2 of 6 as {format.name}",
            prepare=(weights.gate_up, weights.down),
            arguments=(inputs.normal(rows, hidden), counts, ids),
        )


def _moe(inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    for rows, routing in ((1, Routing(top_k=2)), (9, Routing(top_k=3, normalized=True))):
        yield Case(
            name=f"{rows}, {routing.top_k} of 6 and a shared MLP as {format.name}",
            prepare=(_mixture(inputs, format, 128, 256), routing),
            arguments=(inputs.normal(rows, 128),),
        )


def _decoder_layer(inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    for name, sequences, intermediate in (
        ("a decode", ((1, 30),), 384),
        ("decodes and a chunk, rows of 100 downwards", ((1, 7), (1, 40), (9, 20)), 100),
        ("a prompt", ((33, 33),), 256),
    ):
        yield _layer(inputs, format, f"{name} as {format.name}", sequences, intermediate)


def _layer(
    inputs: Inputs,
    format: WeightFormat,
    name: str,
    sequences: tuple[tuple[int, int], ...],
    intermediate: int,
) -> Case:
    shape, hidden = AttentionShape(num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125), 128
    rows, before = sum(new for new, _ in sequences), sum(length - new for new, length in sequences)
    angles = inputs.integers(4096, rows, 1) * 10000.0 ** -torch.linspace(0, 1, 32)
    weights = DecoderLayerWeights(
        input_norm=inputs.near_one(hidden),
        qkv=_weight(inputs, format, 512, hidden),
        qkv_bias=inputs.normal(512, scale=0.5),
        query_norm=None,
        key_norm=None,
        output=_weight(inputs, format, hidden, 256),
        output_bias=None,
        mlp_norm=inputs.near_one(hidden),
        gate_up=_weight(inputs, format, 2 * intermediate, hidden),
        down=_weight(inputs, format, hidden, intermediate),
    )
    cos, sin = angles.cos().to(inputs.dtype), angles.sin().to(inputs.dtype)
    key, value = (inputs.normal(before, 2, 64) for _ in range(2))
    return Case(
        name=name,
        prepare=(weights, _EPS),
        arguments=(inputs.normal(rows, hidden), inputs.normal(rows, hidden), cos, sin),
        cached=CachedSequences(shape=shape, sequences=sequences, key=key, value=value),
    )


_CASES: Mapping[str, Callable[[Inputs, WeightFormat], Iterator[Case]]] = {
    "linear": _linear,
    "gated_mlp": _gated_mlp,
    "experts": _experts,
    "moe": _moe,
    "decoder_layer": _decoder_layer,
}
