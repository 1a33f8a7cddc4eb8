"""A whole decoder layer in one call: Python's side of csrc/layer.h.

Packs the layer's weights once and hands over addresses; per step a call passes six of them. A step of a small
model has dozens of these calls in ten milliseconds, so nothing is allocated in them and little is checked.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.contracts.attention import Attention, LayerCache
from core.contracts.kernels import DecoderLayerWeights, KernelRequest
from core.contracts.quantization import Weight
from core.native import linear
from core.native.attention import (
    CacheStruct,
    NativeAttention,
    NativePlan,
    ShapeStruct,
    cache_struct,
    unsupported,
)
from core.native.library import NativeLibrary

Apply = Callable[..., tuple[Tensor, Tensor]]


class _Layer(ctypes.Structure):
    """`DecoderLayer` in csrc/layer.h."""

    _fields_ = (
        ("attention", ShapeStruct),
        ("hidden", ctypes.c_int64),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("input_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, ctypes.c_void_p) for name in ("qkv", "output", "gate_up", "down")),
    )


def rejects(request: KernelRequest) -> str | None:
    """Why layers of such a model cannot be served, or None."""
    reasons = (reason for spec in request.attention if (reason := unsupported(spec)))
    return next(reasons, None)


def decoder_layer(
    library: NativeLibrary, attention: Attention, weights: DecoderLayerWeights, eps: float
) -> Apply:
    """The kernel `decoder_layer`, for layers whose attention is a NativeAttention.

    Raises TypeError for any other attention, ValueError for a weight that cannot be packed.
    """
    if not isinstance(attention, NativeAttention):
        raise TypeError(f"decoder_layer runs inside a NativeAttention, not a {type(attention).__name__}")
    return _DecoderLayer(library, attention, weights, eps)


class _DecoderLayer:
    """One layer, ready to run."""

    def __init__(
        self, library: NativeLibrary, attention: NativeAttention, weights: DecoderLayerWeights, eps: float
    ) -> None:
        self._layer, self._held = _described(library, attention, weights, eps)
        self._address = ctypes.addressof(self._layer)
        self._dtype = weights.input_norm.dtype
        self._cache: LayerCache | None = None
        self._cache_struct = CacheStruct()
        self._cache_address = ctypes.addressof(self._cache_struct)
        self._run = library.functions.core_decoder_layer
        self._run.argtypes, self._run.restype = [*7 * [ctypes.c_void_p], ctypes.c_int64], None

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        plan: NativePlan,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self._cache is not cache:
            self._cache, self._cache_struct = cache, cache_struct(cache)
            self._cache_address = ctypes.addressof(self._cache_struct)
        plan.rotate_by(cos, sin)
        if residual is None:
            x, given = self._checked(x, plan.rows), None
            residual = torch.empty_like(x)
        else:
            assert x.is_contiguous() and residual.is_contiguous()
            given = residual.data_ptr()
        addresses = (
            self._address,
            plan.address,
            self._cache_address,
            x.data_ptr(),
            given,
            residual.data_ptr(),
        )
        if rows is None:
            self._run(*addresses, None, 0)
            return x, residual
        rows = rows.contiguous()
        count = rows.shape[0]
        assert count <= plan.rows and rows.dtype == torch.int64
        self._run(*addresses, rows.data_ptr(), count)
        return x[:count], residual[:count]

    def _checked(self, x: Tensor, rows: int) -> Tensor:
        """What the first layer is given, contiguous; the others are given what the one before returned."""
        expected = (rows, self._layer.hidden)
        if x.shape != expected or x.dtype != self._dtype:
            raise ValueError(f"x is {list(x.shape)} {x.dtype}; expected {list(expected)} {self._dtype}")
        return x.contiguous()


def _described(
    library: NativeLibrary, attention: NativeAttention, weights: DecoderLayerWeights, eps: float
) -> tuple[_Layer, tuple[Any, ...]]:
    """What the kernel reads, and what must live as long."""

    def packed(weight: Weight, bias: Tensor | None = None, *, gated: bool = False) -> linear.PackedLinear:
        return linear.pack(library, weight, bias, gated)

    norms = {
        name: norm.contiguous()
        for name in ("input_norm", "query_norm", "key_norm", "mlp_norm")
        if (norm := getattr(weights, name)) is not None
    }
    linears = {
        "qkv": packed(weights.qkv, weights.qkv_bias),
        "output": packed(weights.output, weights.output_bias),
        "gate_up": packed(weights.gate_up, gated=True),
        "down": packed(weights.down),
    }
    layer = _Layer(
        attention=attention.shape,
        hidden=weights.input_norm.shape[0],
        eps=eps,
        **{name: norm.data_ptr() for name, norm in norms.items()},
        **{name: each.address for name, each in linears.items()},
    )
    return layer, (norms, linears, attention)
