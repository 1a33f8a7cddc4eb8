"""The kernels in C++ as a platform offers them: one `Implementation` each, and the reason where there is none.

What is rejected falls to whatever a platform has besides, and at last to the reference.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core import reference
from core.contracts.kernels import Implementation, KernelRequest
from core.contracts.quantization import Weight
from core.native import layer, linear
from core.native.attention import DTYPES
from core.native.library import NativeLibrary

NAMES = (
    "linear",
    "gated_mlp",
    "rms_norm",
    "add_rms_norm",
    "rotary",
    "silu_and_mul",
    "argmax",
    "decoder_layer",
)
"""Of the kernels that a library has."""

_NUMBERS: Mapping[torch.dtype, int] = {getattr(torch, name): number for name, number in DTYPES.items()}
_Step = Callable[[Tensor], Tensor]


def implementations(library: NativeLibrary | str) -> Mapping[str, Implementation]:
    """Every kernel of the library, by name. Where there is no library, each is rejected with the reason."""
    if isinstance(library, str):
        stand_ins, reason = reference.assemble({}), library
        return {
            name: Implementation(function=getattr(stand_ins, name), rejects=lambda _: reason)
            for name in NAMES
        }
    small = SmallKernels(library)
    weighty = {"linear": _linear, "gated_mlp": _gated_mlp}
    return {
        **{name: _offered(partial(make, library)) for name, make in weighty.items()},
        "rms_norm": _offered(small.rms_norm),
        "add_rms_norm": _offered(small.add_rms_norm),
        "rotary": _offered(small.rotary),
        "silu_and_mul": _offered(small.silu_and_mul),
        "argmax": _offered(small.argmax),
        "decoder_layer": Implementation(
            function=partial(layer.decoder_layer, library),
            rejects=lambda request: _rejects(request) or layer.rejects(request),
        ),
    }


def _offered(function: Callable[..., Any]) -> Implementation:
    return Implementation(function=function, rejects=_rejects)


def _rejects(request: KernelRequest) -> str | None:
    return None if request.dtype in DTYPES else f"compiled for {' and '.join(DTYPES)}, not {request.dtype}"


def _linear(library: NativeLibrary, weight: Weight, bias: Tensor | None) -> _Step:
    make = (
        reference.KERNELS["linear"].reference if linear.rejects(weight) else partial(linear.linear, library)
    )
    return make(weight, bias)


def _gated_mlp(library: NativeLibrary, gate_up: Weight, down: Weight) -> _Step:
    if linear.rejects(gate_up) or linear.rejects(down):
        return reference.assemble({}).gated_mlp(gate_up, down)
    return linear.gated_mlp(library, gate_up, down)


class SmallKernels:
    """Norms, rotation, activation and argmax, each with the signature of its reference."""

    def __init__(self, library: NativeLibrary) -> None:
        pointer, size, dtype, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
        functions = library.functions
        for name, arguments in (
            ("rms_norm", (dtype, pointer, pointer, real, size, size, pointer)),
            ("add_rms_norm", (dtype, *3 * (pointer,), real, size, size, pointer, pointer)),
            ("rotary", (dtype, pointer, size, pointer, pointer, *4 * (size,), pointer)),
            ("silu_and_mul", (dtype, pointer, size, size, pointer)),
            ("argmax", (dtype, pointer, size, size, pointer, pointer)),
        ):
            function = getattr(functions, f"core_{name}")
            function.argtypes, function.restype = arguments, None
        self._functions = functions

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., H], weight [H] -> like x."""
        x, width = x.contiguous(), weight.shape[0]
        y = torch.empty_like(x)
        run, number = self._functions.core_rms_norm, _NUMBERS[x.dtype]
        run(number, x.data_ptr(), weight.data_ptr(), eps, x.numel() // width, width, y.data_ptr())
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, residual [N, H], weight [H] -> (the norm of their sum, their sum)."""
        x, residual = x.contiguous(), residual.contiguous()
        y, total = torch.empty_like(x), torch.empty_like(x)
        given = (x.data_ptr(), residual.data_ptr(), weight.data_ptr())
        run, number = self._functions.core_add_rms_norm, _NUMBERS[x.dtype]
        run(number, *given, eps, x.shape[0], x.shape[1], y.data_ptr(), total.data_ptr())
        return y, total

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """query [N, Hq, D], key [N, Hkv, D], cos and sin [N, R / 2] -> new tensors like query and key."""
        cos, sin = cos.contiguous(), sin.contiguous()
        return self._rotated(query, cos, sin), self._rotated(key, cos, sin)

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """[N, 2 * I] -> [N, I]."""
        x, width = x.contiguous(), x.shape[1] // 2
        y = x.new_empty(x.shape[0], width)
        run, number = self._functions.core_silu_and_mul, _NUMBERS[x.dtype]
        run(number, x.data_ptr(), x.shape[0], width, y.data_ptr())
        return y

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits [N, V] -> (largest [N], its token [N], int64)."""
        logits, (rows, width) = logits.contiguous(), logits.shape
        largest, token_ids = logits.new_empty(rows), torch.empty(rows, dtype=torch.int64)
        run, number = self._functions.core_argmax, _NUMBERS[logits.dtype]
        run(number, logits.data_ptr(), rows, width, largest.data_ptr(), token_ids.data_ptr())
        return largest, token_ids

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, heads, dim = x.shape
        if x.stride()[1:] != (dim, 1):
            x = x.contiguous()
        y = torch.empty(x.shape, dtype=x.dtype)
        run, half = self._functions.core_rotary, cos.shape[1]
        given = (x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr())
        run(_NUMBERS[x.dtype], *given, rows, heads, dim, half, y.data_ptr())
        return y
