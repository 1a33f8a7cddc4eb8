"""What stands in for the C++ kernels where they cannot be compiled: linear layers on the vendor library.

Weights are packed; that costs one pass at load and halves the time of a single-token step. The gated MLP is fused
into three of its calls.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from core.contracts.kernels import Implementation, KernelRequest
from core.contracts.quantization import QuantizedWeight, Weight
from core.weights.dequantize import dequantized

_PACKED_ROWS = 64  # the row count packing is tuned for; measured, it makes no difference from 1 to 512
_PACKED_DTYPES = ("bfloat16", "float32")

_Step = Callable[[Tensor], Tensor]


def torch_kernels() -> Mapping[str, Implementation]:
    """Kernels on torch operations, by name."""
    return {
        "linear": Implementation(function=linear, rejects=_needs_packing),
        "gated_mlp": Implementation(function=gated_mlp, rejects=_needs_packing),
        "silu_and_mul": Implementation(function=silu_and_mul),
    }


def _needs_packing(request: KernelRequest) -> str | None:
    if request.dtype not in _PACKED_DTYPES:
        return f"packs {' and '.join(_PACKED_DTYPES)}, not {request.dtype}"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    return None


def linear(weight: Weight, bias: Tensor | None) -> _Step:
    """weight [out, in] -> x [N, in] -> [N, out]."""
    if isinstance(weight, QuantizedWeight):
        return _unpacking(lambda dtype: linear(dequantized(weight, dtype), bias))
    packed, outputs = _pack(weight), weight.shape[0]

    def apply(x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, outputs)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return apply


def gated_mlp(gate_up_weight: Weight, down_weight: Weight) -> _Step:
    """gate_up_weight [2 * I, H], down_weight [H, I] -> x [N, H] -> [N, H]: the activation and the product
    ride along with the two products before them.
    """
    if isinstance(gate_up_weight, QuantizedWeight) or isinstance(down_weight, QuantizedWeight):
        return _unpacking(
            lambda dtype: gated_mlp(_tensor(gate_up_weight, dtype), _tensor(down_weight, dtype))
        )
    gate_weight, up_weight = gate_up_weight.chunk(2)
    gate, up, down = _pack(gate_weight), _pack(up_weight), _pack(down_weight)

    def apply(x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(x.shape)
        gated = torch.ops.mkldnn._linear_pointwise(x, gate, None, "swish", [], "")
        gated = torch.ops.mkldnn._linear_pointwise.binary(x, gated, up, None, "mul")
        return torch.ops.mkldnn._linear_pointwise(gated, down, None, "none", [], "")

    return apply


def silu_and_mul(x: Tensor) -> Tensor:
    """[N, 2 * I] -> [N, I]."""
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)


def _unpacking(make: Callable[[torch.dtype], _Step]) -> _Step:
    """A step that is made when it is first called, because only then the dtype is known."""
    made: dict[torch.dtype, _Step] = {}

    def apply(x: Tensor) -> Tensor:
        if x.dtype not in made:
            made[x.dtype] = make(x.dtype)
        return made[x.dtype](x)

    return apply


def _tensor(weight: Weight, dtype: torch.dtype) -> Tensor:
    return dequantized(weight, dtype) if isinstance(weight, QuantizedWeight) else weight


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_ROWS)
