"""Projections, and the gated MLP made of them. Quantised weights are unpacked, which defines their results."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Kernel, Kernels
from core.contracts.quantization import QuantizedWeight, Weight
from core.reference.inputs import Inputs, rounded
from core.weights.dequantize import dequantized


def linear(weight: Weight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """weight [out, in], bias [out] or None -> a function x [N, in] -> [N, out]."""
    if isinstance(weight, QuantizedWeight):
        return _unpacking(weight, bias)

    def apply(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return apply


def _unpacking(weight: QuantizedWeight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Unpacks when it is first called, because only then the dtype is known."""
    unpacked: dict[torch.dtype, Tensor] = {}

    def apply(x: Tensor) -> Tensor:
        if x.dtype not in unpacked:
            unpacked[x.dtype] = dequantized(weight, x.dtype)
        return F.linear(x, unpacked[x.dtype], bias)

    return apply


def silu_and_mul(x: Tensor) -> Tensor:
    """x [N, 2 * I] -> [N, I]: silu(first half) * second half."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gated_mlp(kernels: Kernels, gate_up_weight: Weight, down_weight: Weight) -> Callable[[Tensor], Tensor]:
    """gate_up_weight [2 * I, H] (gate first), down_weight [H, I] -> a function x [N, H] -> [N, H]."""
    gate_up, down = kernels.linear(gate_up_weight, None), kernels.linear(down_weight, None)

    def apply(x: Tensor) -> Tensor:
        return down(kernels.silu_and_mul(gate_up(x)))

    return apply


def _linear_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    shapes = ((0, 64, 64), (1, 64, 96), (1, 1024, 1), (3, 100, 33), (17, 576, 960), (65, 1, 7))
    for rows, width, outputs in shapes:
        for biased in (False, True):
            bias = inputs.normal(outputs, scale=0.5) if biased else None
            yield Case(
                name=f"{rows}x{width}->{outputs}{' with bias' if biased else ''}",
                prepare=(inputs.weight(outputs, width), bias),
                arguments=(inputs.normal(rows, width),),
            )


def _silu_and_mul_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, width in ((0, 64), (1, 64), (3, 33), (17, 1536)):
        yield Case(name=f"{rows}x{width}", arguments=(inputs.normal(rows, 2 * width),))
    # exp(100) overflows every dtype here: the saturated ends of silu.
    yield Case(name="large", arguments=(inputs.normal(3, 32).sign() * 100,))


def _gated_mlp_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, hidden, intermediate in ((0, 64, 96), (1, 64, 96), (3, 100, 33), (17, 576, 1536)):
        yield Case(
            name=f"{rows}x{hidden}x{intermediate}",
            prepare=(inputs.weight(2 * intermediate, hidden), inputs.weight(hidden, intermediate)),
            arguments=(inputs.normal(rows, hidden),),
        )


LINEAR = Kernel(
    name="linear",
    reference=linear,
    cases=_linear_cases,
    tolerance=rounded(8),
    prepared=True,
    summary="x @ weight.T + bias; the platform owns the layout of the weight",
)
SILU_AND_MUL = Kernel(
    name="silu_and_mul",
    reference=silu_and_mul,
    cases=_silu_and_mul_cases,
    tolerance=rounded(8),
    summary="silu of the first half times the second",
)
GATED_MLP = Kernel(
    name="gated_mlp",
    reference=gated_mlp,
    cases=_gated_mlp_cases,
    tolerance=rounded(16),
    prepared=True,
    composed=("linear", "silu_and_mul"),
    summary="down(silu(gate(x)) * up(x))",
)
