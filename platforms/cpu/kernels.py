"""The kernels of this platform: in C++ where they can be compiled, else linear layers on the vendor library.

For the latter, weights are packed; that costs one pass at load and halves the time of a single-token step. The
gated MLP is fused into three of its calls.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from core import reference
from core.contracts.kernels import Implementation, KernelRequest
from core.contracts.quantization import QuantizedWeight, Weight
from core.native import kernels as native
from core.native.library import native_library
from platforms.cpu.isa.levels import chosen_build

_PACKED_ROWS = 64  # the row count packing is tuned for; measured, it makes no difference from 1 to 512
_PACKED_DTYPES = ("bfloat16", "float32")


def implementations() -> Mapping[str, Implementation]:
    """This platform's kernels by name."""
    library = native_library(chosen_build())
    if isinstance(library, str):
        return {
            "linear": Implementation(function=linear, rejects=_needs_packing),
            "gated_mlp": Implementation(function=gated_mlp, rejects=_needs_packing),
            "silu_and_mul": Implementation(function=silu_and_mul),
            "decoder_layer": Implementation(
                function=reference.KERNELS["decoder_layer"].reference, rejects=lambda _: library
            ),
        }
    return native.implementations(library)


def weight_formats() -> frozenset[str]:
    """Formats in which these kernels take weights as they are."""
    return frozenset() if isinstance(native_library(chosen_build()), str) else native.WEIGHT_FORMATS


def _needs_packing(request: KernelRequest) -> str | None:
    if request.dtype not in _PACKED_DTYPES:
        return f"packs {' and '.join(_PACKED_DTYPES)}, not {request.dtype}"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    return None


def linear(weight: Weight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """weight [out, in] -> x [N, in] -> [N, out]."""
    if isinstance(weight, QuantizedWeight):
        return reference.assemble({}).linear(weight, bias)
    packed, outputs = _pack(weight), weight.shape[0]

    def apply(x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, outputs)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return apply


def gated_mlp(gate_up_weight: Weight, down_weight: Weight) -> Callable[[Tensor], Tensor]:
    """gate_up_weight [2 * I, H], down_weight [H, I] -> x [N, H] -> [N, H]: the activation and the product
    ride along with the two products before them.
    """
    if isinstance(gate_up_weight, QuantizedWeight) or isinstance(down_weight, QuantizedWeight):
        return reference.assemble({}).gated_mlp(gate_up_weight, down_weight)
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


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_ROWS)
