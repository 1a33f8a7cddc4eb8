"""Linear layers on packed weights: Python's side of csrc/linear.h.

Packing takes one pass, from a tensor or from the stored bytes of a quantised weight; the packed copy replaces the
original. What a product costs is decided in C++; this module owns memory, and hands over addresses.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.contracts.quantization import QuantizedWeight, Weight
from core.native.library import NativeLibrary

DTYPES = ("bfloat16", "float32")
"""Names of the dtypes of activations, and of weights that are not quantised."""

_BLOCK = 32  # quantised activations that share a scale; groups are whole blocks
_FLOAT32, _BFLOAT16, _INT8, _INT4 = range(4)  # as in linear.h
_ALIGNMENT = 64


class _Linear(ctypes.Structure):
    """core::Linear, field by field."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("minimums", ctypes.c_int32),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A packed weight. `address` is that of its core::Linear, valid as long as this object lives.

    outputs  per row of results: half of the weight's, for a gated one
    dtypes   that activations may have
    """

    address: int
    inputs: int
    outputs: int
    dtypes: frozenset[torch.dtype]
    owned: tuple[Any, ...]


def rejects(weight: Weight) -> str | None:
    """Why this weight cannot be packed, or None."""
    if not isinstance(weight, QuantizedWeight):
        name = str(weight.dtype).removeprefix("torch.")
        return None if name in DTYPES else f"packs {' and '.join(DTYPES)}, not {name}"
    stored = weight.format
    if stored.group is None:
        if stored.bits != 8 or stored.minimum or stored.scale != "float32":
            return f"packs no {stored.name} without groups"
        return None
    if stored.group % _BLOCK or stored.scale != "float16" or (stored.bits == 8 and stored.minimum):
        return f"packs no {stored.name}"
    return None


def pack(library: NativeLibrary, weight: Weight, bias: Tensor | None, gated: bool = False) -> PackedLinear:
    """weight [out, in], on the CPU; bias [out] or None. Gated: a gate above an up projection, out / 2 rows each.

    Raises ValueError when `rejects` has a reason.
    """
    if reason := rejects(weight):
        raise ValueError(reason)
    functions = _declared(library)
    described = _description(weight, gated)
    address = ctypes.addressof(described)
    lanes = 32 * functions.linear_panel_count(address)
    panels = _allocated(functions.linear_panel_bytes(address) * (lanes // 32))
    described.panels = panels.data_ptr()
    owned: list[Any] = [described, panels]
    if isinstance(weight, QuantizedWeight) and weight.format.group is None:
        owned.append(torch.zeros(lanes))
        described.scales = owned[-1].data_ptr()
    source = (weight.data if isinstance(weight, QuantizedWeight) else weight).contiguous()
    functions.linear_pack(address, source.data_ptr(), source.stride(0) * source.element_size())
    if bias is not None:
        given, spread = bias.float().contiguous(), torch.empty(lanes)
        functions.linear_spread(address, given.data_ptr(), spread.data_ptr())
        owned.append(spread)
        described.bias = spread.data_ptr()
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    return PackedLinear(address, weight.shape[1], outputs, _dtypes(weight), tuple(owned))


def linear(library: NativeLibrary, weight: Weight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """weight [out, in], bias [out] or None -> a function x [N, in] -> [N, out]."""
    packed = pack(library, weight, bias)
    functions = _declared(library)
    scratch_bytes = functions.linear_scratch
    multiply = _by_dtype(functions, "linear", packed.dtypes)

    def apply(x: Tensor) -> Tensor:
        x, rows = x.contiguous(), x.shape[0]
        assert x.shape[1] == packed.inputs, f"rows of {x.shape[1]} for a weight of {packed.inputs} inputs"
        y = x.new_empty(rows, packed.outputs)
        scratch = torch.empty(scratch_bytes(packed.address, rows), dtype=torch.uint8)
        multiply[x.dtype](packed.address, x.data_ptr(), rows, y.data_ptr(), scratch.data_ptr())
        return y

    return apply


def gated_mlp(
    library: NativeLibrary, gate_up_weight: Weight, down_weight: Weight
) -> Callable[[Tensor], Tensor]:
    """gate_up_weight [2 * I, H] (gate first), down_weight [H, I] -> a function x [N, H] -> [N, H]: one call."""
    gate_up, down = pack(library, gate_up_weight, None, gated=True), pack(library, down_weight, None)
    functions = _declared(library)
    scratch_bytes = functions.gated_mlp_scratch
    compute = _by_dtype(functions, "gated_mlp", gate_up.dtypes & down.dtypes)

    def apply(x: Tensor) -> Tensor:
        x, rows = x.contiguous(), x.shape[0]
        assert x.shape[1] == gate_up.inputs, f"rows of {x.shape[1]} for a weight of {gate_up.inputs} inputs"
        y = x.new_empty(rows, down.outputs)
        scratch = torch.empty(scratch_bytes(gate_up.address, down.address, rows), dtype=torch.uint8)
        compute[x.dtype](gate_up.address, down.address, x.data_ptr(), rows, y.data_ptr(), scratch.data_ptr())
        return y

    return apply


def _description(weight: Weight, gated: bool) -> _Linear:
    outputs, inputs = weight.shape
    if not isinstance(weight, QuantizedWeight):
        kind = _BFLOAT16 if weight.dtype == torch.bfloat16 else _FLOAT32
        return _Linear(format=kind, gated=gated, outputs=outputs, inputs=inputs)
    stored = weight.format
    kind = _INT8 if stored.bits == 8 else _INT4
    return _Linear(kind, gated, stored.minimum, outputs, inputs, stored.group or 0)


def _dtypes(weight: Weight) -> frozenset[torch.dtype]:
    if isinstance(weight, QuantizedWeight):
        return frozenset({torch.bfloat16, torch.float32})
    return frozenset({weight.dtype})


def _by_dtype(
    functions: ctypes.CDLL, name: str, dtypes: frozenset[torch.dtype]
) -> Mapping[torch.dtype, Callable[..., None]]:
    return {dtype: getattr(functions, f"{name}_{str(dtype).removeprefix('torch.')}") for dtype in dtypes}


def _allocated(size: int) -> Tensor:
    """Bytes for panels, aligned for the widest vectors."""
    memory = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
    start = -memory.data_ptr() % _ALIGNMENT
    return memory[start : start + size]


def _declared(library: NativeLibrary) -> ctypes.CDLL:
    """The functions, with the types of their arguments."""
    functions = library.functions
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("linear_panel_count", integer, (pointer,)),
        ("linear_panel_bytes", integer, (pointer,)),
        ("linear_pack", None, (pointer, pointer, integer)),
        ("linear_spread", None, (pointer, pointer, pointer)),
        ("linear_scratch", integer, (pointer, integer)),
        ("gated_mlp_scratch", integer, (pointer, pointer, integer)),
        *((f"linear_{d}", None, (pointer, pointer, integer, pointer, pointer)) for d in DTYPES),
        *((f"gated_mlp_{d}", None, (pointer, pointer, pointer, integer, pointer, pointer)) for d in DTYPES),
    ):
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions
