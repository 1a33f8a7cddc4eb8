"""Projections, and the gated MLP made of them. Quantised weights are unpacked, which defines their results."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel, Kernels
from core.contracts.quantization import QuantizedWeight, Weight
from core.reference.costs import GATE_FLOPS, product_flops, stored_bytes
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
    shapes = ((3, 100, 33), (1, 64, 96), (0, 64, 64), (1, 1024, 1), (17, 576, 960), (65, 1, 7))
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
    for rows, width in ((3, 33), (1, 64), (0, 64), (17, 1536)):
        yield Case(name=f"{rows}x{width}", arguments=(inputs.normal(rows, 2 * width),))
    # exp(100) overflows every dtype here: the saturated ends of silu.
    yield Case(name="large", arguments=(inputs.normal(3, 32).sign() * 100,))


def _gated_mlp_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, hidden, intermediate in ((3, 100, 33), (1, 64, 96), (0, 64, 96), (17, 576, 1536)):
        yield Case(
            name=f"{rows}x{hidden}x{intermediate}",
            prepare=(inputs.weight(2 * intermediate, hidden), inputs.weight(hidden, intermediate)),
            arguments=(inputs.normal(rows, hidden),),
        )


def _linear_cost(case: Case) -> Cost:
    """The weight as it is stored, the bias and x are read, [N, out] is written; 2 * N * out * in flops."""
    (weight, bias), (x,) = case.prepare, case.arguments
    rows = x.shape[0]
    read = stored_bytes(weight, bias, x) if rows else 0
    return Cost(read + rows * weight.shape[0] * x.element_size(), product_flops(rows, weight))


def _silu_and_mul_cost(case: Case) -> Cost:
    """[N, 2 * I] is read, [N, I] written; 5 * N * I flops."""
    (x,) = case.arguments
    return Cost(stored_bytes(x) * 3 // 2, GATE_FLOPS * x.numel() // 2)


def _gated_mlp_cost(case: Case) -> Cost:
    """Both weights as they are stored and x are read, [N, H] is written; 6 * N * H * I + 5 * N * I flops."""
    (gate_up, down), (x,) = case.prepare, case.arguments
    rows = x.shape[0]
    moved = stored_bytes(gate_up, down, x, x) if rows else 0  # the result is as large as x
    gated = GATE_FLOPS * rows * down.shape[1]
    return Cost(moved, product_flops(rows, gate_up) + gated + product_flops(rows, down))


LINEAR = Kernel(
    name="linear",
    reference=linear,
    cases=_linear_cases,
    tolerance=rounded(8),
    cost=_linear_cost,
    prepared=True,
    summary="x @ weight.T + bias; the platform owns the layout of the weight",
)
SILU_AND_MUL = Kernel(
    name="silu_and_mul",
    reference=silu_and_mul,
    cases=_silu_and_mul_cases,
    tolerance=rounded(8),
    cost=_silu_and_mul_cost,
    summary="silu of the first half times the second",
)
GATED_MLP = Kernel(
    name="gated_mlp",
    reference=gated_mlp,
    cases=_gated_mlp_cases,
    tolerance=rounded(16),
    cost=_gated_mlp_cost,
    prepared=True,
    composed=("linear", "silu_and_mul"),
    summary="down(silu(gate(x)) * up(x))",
)
