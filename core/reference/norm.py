"""Root-mean-square norm, and layer norm.

Source: Zhang and Sennrich 2019; rounding as in transformers' LlamaRMSNorm. Ba, Kiros and Hinton 2016.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.reference.costs import LAYER_NORM_FLOPS, NORM_FLOPS, stored_bytes
from core.reference.inputs import Inputs, rounded

_EPS = 1e-5


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> like x.

    Computed in float32 and rounded to the dtype of x; the product with the weight is rounded again.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [N, H], weight [H] -> (the norm of their sum, their sum). The sum has the dtype of x."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x [..., H], weight and bias [H] or None -> like x. Computed in float32, weight and bias too, and rounded once."""
    shift = None if bias is None else bias.float()
    scale = None if weight is None else weight.float()
    return F.layer_norm(x.float(), x.shape[-1:], scale, shift, eps).to(x.dtype)


def _shapes() -> Iterator[tuple[int, ...]]:
    yield from ((3, 100), (1, 64), (0, 64), (17, 576), (3, 1))


def _rms_norm_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for shape in (*_shapes(), (0, 4, 16), (5, 3, 7), (17, 9, 64)):
        weight = inputs.near_one(shape[-1])
        yield Case(name="x".join(map(str, shape)), arguments=(inputs.normal(*shape), weight, _EPS))
    weight = inputs.near_one(16)
    heads = inputs.normal(5, 96)[:, 32:80].view(5, 3, 16)
    yield Case(name="heads in a stacked projection", arguments=(heads, weight, _EPS))
    yield Case(name="squares overflow float16", arguments=(inputs.normal(3, 16, scale=1000.0), weight, _EPS))
    yield Case(name="zeros", arguments=(torch.zeros(2, 16, dtype=inputs.dtype), weight, _EPS))


def _add_rms_norm_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for shape in _shapes():
        x, residual, weight = inputs.normal(*shape), inputs.normal(*shape), inputs.near_one(shape[-1])
        yield Case(name="x".join(map(str, shape)), arguments=(x, residual, weight, _EPS))


def _layer_norm_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for shape in (*_shapes(), (5, 3, 7)):
        weight, bias = inputs.near_one(shape[-1]), inputs.normal(shape[-1], scale=0.5)
        yield Case(name="x".join(map(str, shape)), arguments=(inputs.normal(*shape), weight, bias, _EPS))
    x, weight = inputs.normal(3, 100), inputs.near_one(100)
    yield Case(name="no bias", arguments=(x, weight, None, _EPS))
    yield Case(name="neither weight nor bias", arguments=(x, None, None, _EPS))
    yield Case(name="far from zero", arguments=(inputs.normal(3, 64) + 30, None, None, _EPS))
    yield Case(name="zeros", arguments=(torch.zeros(2, 100, dtype=inputs.dtype), weight, None, _EPS))


def _layer_norm_cost(case: Case) -> Cost:
    """x, the weight and the bias are read, and as much as x is written; 7 flops an element."""
    x, weight, bias, _ = case.arguments
    read = stored_bytes(weight, bias) if x.numel() else 0
    return Cost(2 * stored_bytes(x) + read, LAYER_NORM_FLOPS * x.numel())


def _rms_norm_cost(case: Case) -> Cost:
    """x and the weight are read, and as much as x is written; 4 flops an element."""
    x, weight, _ = case.arguments
    return Cost(2 * stored_bytes(x) + _read(x, weight), NORM_FLOPS * x.numel())


def _add_rms_norm_cost(case: Case) -> Cost:
    """x, the residual and the weight are read, the norm and the sum are written; 5 flops an element."""
    x, residual, weight, _ = case.arguments
    return Cost(2 * stored_bytes(x, residual) + _read(x, weight), (NORM_FLOPS + 1) * x.numel())


def _read(x: Tensor, weight: Tensor) -> int:
    return stored_bytes(weight) if x.numel() else 0


RMS_NORM = Kernel(
    name="rms_norm",
    reference=rms_norm,
    cases=_rms_norm_cases,
    tolerance=rounded(8),
    cost=_rms_norm_cost,
    summary="x / sqrt(mean(x**2) + eps) * weight over the last axis",
)
ADD_RMS_NORM = Kernel(
    name="add_rms_norm",
    reference=add_rms_norm,
    cases=_add_rms_norm_cases,
    tolerance=rounded(8),
    cost=_add_rms_norm_cost,
    summary="the residual addition and the norm that follows it",
)
LAYER_NORM = Kernel(
    name="layer_norm",
    reference=layer_norm,
    cases=_layer_norm_cases,
    tolerance=rounded(8),
    cost=_layer_norm_cost,
    summary="(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias over the last axis",
)
