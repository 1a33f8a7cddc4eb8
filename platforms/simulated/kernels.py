"""The reference kernels behind checks of their arguments, one of which fails when asked to.

`gated_mlp` and `moe` are left out on purpose: they are composed of these.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from core.contracts.kernels import Implementation, Routing
from core.contracts.state import StateBatch
from core.errors import ContractViolation
from core.reference import KERNELS
from core.reference.activation import ACTIVATIONS
from platforms.simulated.memory import poisoned
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


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> str:
    given = [tensor for tensor in (weight, bias) if tensor is not None]
    if x.dim() not in (2, 3) or any(tensor.shape != x.shape[-1:] for tensor in given) or not eps > 0:
        return "expected x [..., H], weight and bias [H] or None, and eps above 0"
    return "" if _alike(x, *given) else _ALIKE


def _activation(x: Tensor, kind: str) -> str:
    if kind not in ACTIVATIONS:
        return f"{kind!r} is no activation; known: {', '.join(ACTIVATIONS)}"
    return "" if x.dim() == 2 and _alike(x) else "expected a dense x [N, I]"


def _rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> str:
    heads = query.dim() == key.dim() == 3 and query.shape[2] == key.shape[2]
    tables = cos.dim() == 2 and cos.shape == sin.shape and 2 * cos.shape[1] <= query.shape[-1]
    if not (heads and tables and len(query) == len(key) == len(cos)):
        return "expected query [N, Hq, D], key [N, Hkv, D], cos and sin [N, R / 2] with R <= D"
    return "" if _alike(query, key, cos, sin) else _ALIKE


def _silu_and_mul(x: Tensor) -> str:
    return "" if x.dim() == 2 and x.shape[1] % 2 == 0 and _alike(x) else "expected a dense x [N, 2 * I]"


def _route(logits: Tensor, bias: Tensor | None, routing: Routing) -> str:
    given = [logits] if bias is None else [logits, bias]
    if any(t.dtype != torch.float32 or t.shape[-1] != logits.shape[-1] for t in given) or logits.dim() != 2:
        return "expected logits [N, E] and a bias [E], float32"
    count = logits.shape[1]
    in_reach = count // routing.groups * routing.top_groups
    return (
        ""
        if count % routing.groups == 0 and routing.top_k <= in_reach
        else "not enough experts to choose from"
    )


def _causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, batch: StateBatch) -> str:
    if x.dim() != 2 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        return "expected x [N, C] and a weight [C, K]"
    if states.dim() != 3 or states.shape[1:] != (weight.shape[1] - 1, x.shape[1]):
        return "expected states [num_blocks, K - 1, C]"
    if not _alike(x, weight, states, *([] if bias is None else [bias])):
        return _ALIKE
    return _state_problem(len(x), states, batch)


def _selective_scan(
    x: Tensor,
    step: Tensor,
    step_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    gate: Tensor | None,
    states: Tensor,
    batch: StateBatch,
) -> str:
    if not _alike(x, step, b, c, *([] if gate is None else [gate])) or not _alike(step_bias, a, d, states):
        return _ALIKE
    if x.dim() != 3 or step.shape != x.shape[:2] or b.shape != c.shape or x.shape[1] % b.shape[1]:
        return "expected x [N, H, P], a step [N, H], b and c [N, G, S]"
    if states.dtype != torch.float32 or states.shape[1:] != (*x.shape[1:], b.shape[2]):
        return "expected states [num_blocks, H, P, S] float32"
    if (
        a.dim() != 2
        or a.shape[1] not in (1, b.shape[2])
        or not len(step_bias) == len(a) == len(d) == x.shape[1]
    ):
        return "expected a step bias and d [H], and a [H, S] or [H, 1]"
    return _state_problem(len(x), states, batch)


def _state_problem(rows: int, states: Tensor, batch: StateBatch) -> str:
    read, written, count = batch.read_blocks, batch.write_blocks, len(batch.query_lens)
    if batch.query_start.tolist() != [0, *accumulate(batch.query_lens)] or sum(batch.query_lens) > rows:
        return f"query_start is {batch.query_start.tolist()} for query_lens {list(batch.query_lens)} and {rows} rows"
    if len(read) != count or len(written.unique()) != count or not bool((written > 0).all()):
        return "expected a block of its own for each sequence to write"
    if bool((read.unsqueeze(1) == written).fill_diagonal_(False).any()):
        return "a sequence reads the state that another writes in the same step"
    dead = poisoned(states[read]).flatten(1).any(dim=1) & (read > 0)
    if bool(dead.any()):
        return f"block {int(read[dead][0])} is read, which was discarded or never written"
    return ""


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
    "layer_norm": _layer_norm,
    "rotary": _rotary,
    "activation": _activation,
    "silu_and_mul": _silu_and_mul,
    "route": _route,
    "causal_conv": _causal_conv,
    "selective_scan": _selective_scan,
    "argmax": _argmax,
    "sample": _sample,
}
