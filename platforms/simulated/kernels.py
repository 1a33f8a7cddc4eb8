"""The reference kernels behind checks of their arguments, one of which fails when asked to.

`gated_mlp` is left out on purpose: it is composed of these.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.contracts.kernels import Implementation
from core.errors import ContractViolation
from core.reference import KERNELS
from platforms.simulated.options import KernelFault


def implementations(fault: KernelFault | None) -> Mapping[str, Implementation]:
    """This platform's kernels by name; calls are counted from here on."""
    return {name: Implementation(function=_Checked(name, fault).function()) for name in _CHECKS}


class _Checked:
    """One kernel: counts its calls, fails the chosen one, checks the arguments of the others."""

    def __init__(self, name: str, fault: KernelFault | None) -> None:
        self._name = name
        self._failing_call = fault.call if fault is not None and fault.kernel == name else None
        self._calls = 0

    def function(self) -> Callable[..., Any]:
        reference = KERNELS[self._name].reference
        if not KERNELS[self._name].prepared:
            return lambda *arguments: self._call(reference, (), arguments)

        def prepare(*weights: Any) -> Callable[..., Any]:
            apply = reference(*weights)
            return lambda *arguments: self._call(apply, weights, arguments)

        return prepare

    def _call(
        self, function: Callable[..., Any], weights: tuple[Any, ...], arguments: tuple[Any, ...]
    ) -> Any:
        self._calls += 1
        if self._calls == self._failing_call:
            raise RuntimeError(f"simulated: {self._name} failed on call {self._calls} (fail_kernel)")
        problem = _CHECKS[self._name](*weights, *arguments)
        if problem:
            tensors = [f"{list(a.shape)} {a.dtype}" for a in (*weights, *arguments) if isinstance(a, Tensor)]
            raise ContractViolation(f"simulated: {self._name}: {problem}; it was given {', '.join(tensors)}")
        return function(*arguments)


def _alike(*tensors: Tensor) -> bool:
    """One dtype, one device, and vectors that are dense in memory."""
    first = tensors[0]
    return all(
        t.dtype == first.dtype and t.device == first.device and (t.stride(-1) == 1 or t.shape[-1] <= 1)
        for t in tensors
    )


_ALIKE = "arguments must agree in dtype and device, and their last axis must be dense"


def _embedding(token_ids: Tensor, weight: Tensor) -> str:
    if token_ids.dtype != torch.int64 or token_ids.dim() != 1 or weight.dim() != 2:
        return "expected token ids [N] int64 and a weight [V, H]"
    inside = bool(((token_ids >= 0) & (token_ids < weight.shape[0])).all())
    return "" if inside else f"token ids must lie in [0, {weight.shape[0]})"


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> str:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        return "expected a weight [out, in] and x [N, in]"
    if bias is not None and bias.shape != weight.shape[:1]:
        return "expected a bias [out]"
    return "" if _alike(x, weight, *([] if bias is None else [bias])) else _ALIKE


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> str:
    if x.dim() not in (2, 3) or weight.shape != x.shape[-1:] or not eps > 0:
        return "expected x [..., H], weight [H] and eps above 0"
    return "" if _alike(x, weight) else _ALIKE


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> str:
    if x.shape != residual.shape or not _alike(x, residual):
        return "expected a residual like x"
    return _rms_norm(x, weight, eps)


def _rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> str:
    heads = query.dim() == key.dim() == 3 and query.shape[2] == key.shape[2]
    tables = cos.dim() == 2 and cos.shape == sin.shape and 2 * cos.shape[1] <= query.shape[-1]
    if not (heads and tables and len(query) == len(key) == len(cos)):
        return "expected query [N, Hq, D], key [N, Hkv, D], cos and sin [N, R / 2] with R <= D"
    return "" if _alike(query, key, cos, sin) else _ALIKE


def _silu_and_mul(x: Tensor) -> str:
    return "" if x.dim() == 2 and x.shape[1] % 2 == 0 and _alike(x) else "expected a dense x [N, 2 * I]"


def _argmax(logits: Tensor) -> str:
    return "" if logits.dim() == 2 and _alike(logits) else "expected logits [N, V]"


def _sample(logits: Tensor, *limits: Tensor) -> str:
    if logits.dim() != 2 or logits.dtype != torch.float32 or any(t.shape != logits.shape[:1] for t in limits):
        return "expected logits [N, V] float32 and [N] of everything else"
    if limits[1].dtype != torch.int64 or limits[-1].dtype != torch.float64:
        return "expected top_k int64 and uniform float64"
    inside = bool(((limits[-1] >= 0) & (limits[-1] < 1)).all())
    return "" if inside else "uniform must lie in [0, 1)"


_CHECKS: Mapping[str, Callable[..., str]] = {
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rotary": _rotary,
    "silu_and_mul": _silu_and_mul,
    "argmax": _argmax,
    "sample": _sample,
}
