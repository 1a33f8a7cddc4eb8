"""Paged attention in C++, prompts and decodes alike: its plans, and what its kernels are told.

Mirrors core/native/csrc/step.h field by field. The cache is [num_kv_heads, num_blocks, block_size, head_dim], and of
bytes [num_kv_heads, num_blocks, block_size, head_dim + 4] where it is quantised; how a block of it is arranged stands
in csrc/pages.h and concerns nobody else.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, CacheLayout, LayerCache
from core.native.library import NativeLibrary

DTYPES = {"float32": 0, "bfloat16": 1}
"""Model dtypes that the kernels are compiled for, as csrc/step.h numbers them."""

CACHE_DTYPES = frozenset({"int8"})
"""What keys and values are kept in besides the model dtype."""

MAX_HEAD_DIM = 256
_LANES = 16
_PIECE = 256  # keys of a decode that are one task
_TASK_BYTES = 32
_SCALE_BYTES = 4


class ShapeStruct(ctypes.Structure):
    """`AttentionShape` in csrc/step.h."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("quantized", ctypes.c_int64),
    )


class CacheStruct(ctypes.Structure):
    """`Cache` in csrc/step.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("num_blocks", "populated")),
    )


class StepStruct(ctypes.Structure):
    """`Step` in csrc/step.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "num_sequences", "num_decodes", "table_width")),
        *((name, ctypes.c_int64) for name in ("num_tasks", "num_partials", "highest_block", "half")),
        *((name, ctypes.c_void_p) for name in ("query_start", "block_tables", "lengths", "slots")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "tasks")),
    )


class NativePlan:
    """One step of one cache group: what the kernels are told, and the tensors that must outlive it."""

    __slots__ = ("_held", "_rotated_by", "address", "rows", "struct")

    def __init__(self, batch: AttentionBatch, capacity: int) -> None:
        tables, tasks = batch.block_tables, torch.empty(capacity * _TASK_BYTES, dtype=torch.uint8)
        self.rows = batch.slot_mapping.shape[0]
        self.struct = StepStruct(
            rows=self.rows,
            num_sequences=len(batch.lengths),
            num_decodes=batch.num_decodes,
            table_width=tables.shape[1],
            query_start=batch.query_start.data_ptr(),
            block_tables=tables.data_ptr(),
            lengths=batch.seq_lengths.data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            tasks=tasks.data_ptr(),
        )
        self.address = ctypes.addressof(self.struct)
        self._held = (batch, tasks)
        self._rotated_by: tuple[Tensor, Tensor] | None = None

    def rotate_by(self, cos: Tensor, sin: Tensor) -> None:
        """The layers' cosines and sines, [rows, R / 2] each; the same tensors for all layers cost nothing."""
        held = self._rotated_by
        if held is None or held[0] is not cos or held[1] is not sin:
            if cos.shape[0] != self.rows or not (cos.is_contiguous() and sin.is_contiguous()):
                raise ValueError(f"cos is {list(cos.shape)} and must be contiguous, one row per token")
            self.struct.half = cos.shape[1]
            self.struct.cos, self.struct.sin = cos.data_ptr(), sin.data_ptr()
            self._rotated_by = (cos, sin)


class NativeAttention(Attention):
    """Attention for layers of one spec."""

    def __init__(self, spec: AttentionSpec, library: NativeLibrary) -> None:
        """`spec` is one that `unsupported` has no objection to."""
        self.spec = spec
        self.shape = shape_struct(spec)
        self._shape = ctypes.addressof(self.shape)
        functions = library.functions
        self._plan = _declare(functions.core_plan_attention, 2 * [ctypes.c_void_p])
        row = [ctypes.c_void_p, ctypes.c_int64]
        self._write = _declare(functions.core_write_cache, 3 * [ctypes.c_void_p] + 2 * row)
        self._attend = _declare(functions.core_attend, 3 * [ctypes.c_void_p] + [*row, ctypes.c_void_p])

    def layout(self, num_blocks: int) -> CacheLayout:
        shape = (self.spec.num_kv_heads, num_blocks, self.spec.block_size)
        if self.spec.quantized:
            return CacheLayout((*shape, self.spec.head_dim + _SCALE_BYTES), 1, "uint8")
        return CacheLayout((*shape, self.spec.head_dim), 1)

    def plan(self, batch: AttentionBatch) -> NativePlan:
        tokens = sum(batch.query_lens)
        decodes = batch.lengths[: batch.num_decodes]
        plan = NativePlan(batch, tokens + sum(length // _PIECE for length in decodes) + 1)
        self._plan(self._shape, plan.address)
        return plan

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: NativePlan) -> None:
        key, value = _rows(key), _rows(value)
        where = ctypes.byref(cache_struct(cache))
        strides = (key.stride(0), value.stride(0))
        self._write(
            self._shape, plan.address, where, key.data_ptr(), strides[0], value.data_ptr(), strides[1]
        )

    def attend(self, query: Tensor, cache: LayerCache, plan: NativePlan) -> Tensor:
        query = _rows(query)
        output = torch.empty(query.shape, dtype=query.dtype)
        where = ctypes.byref(cache_struct(cache))
        self._attend(self._shape, plan.address, where, query.data_ptr(), query.stride(0), output.data_ptr())
        return output


def unsupported(spec: AttentionSpec) -> str | None:
    """The reason why layers of this spec cannot be served, or None when they can."""
    if spec.dtype not in DTYPES:
        return f"compiled for {' and '.join(DTYPES)}, not {spec.dtype}"
    if spec.quantized and spec.cache_dtype not in CACHE_DTYPES:
        kept = ", ".join(sorted(CACHE_DTYPES))
        return f"keeps keys and values in {spec.dtype} or {kept}, not {spec.cache_dtype}"
    if spec.soft_cap is not None:
        return f"soft_cap is {spec.soft_cap:g}; the scores of its kernels have no cap"
    if spec.alibi:
        return "alibi is asked for; the scores of its kernels do not fall with distance"
    if not spec.causal:
        return "its kernels let tokens see none that follow"
    if spec.latent is not None:
        return "its kernels take no values out of keys"
    if spec.head_dim % _LANES or spec.head_dim > MAX_HEAD_DIM:
        return f"head_dim is {spec.head_dim}; multiples of {_LANES} up to {MAX_HEAD_DIM} are accepted"
    if spec.block_size % _LANES:
        return f"block_size is {spec.block_size}; multiples of {_LANES} are accepted"
    return None


def shape_struct(spec: AttentionSpec) -> ShapeStruct:
    """The spec as the kernels read it."""
    return ShapeStruct(
        dtype=DTYPES[spec.dtype],
        scale=spec.scale,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=spec.block_size,
        window=spec.sliding_window or 0,
        quantized=spec.quantized,
    )


def cache_struct(cache: LayerCache) -> CacheStruct:
    """One layer's cache as the kernels read it. The tensors must outlive it."""
    return CacheStruct(
        keys=cache.keys.data_ptr(), values=cache.values.data_ptr(), num_blocks=cache.keys.shape[1]
    )


def _rows(heads: Tensor) -> Tensor:
    """[N, heads, D] whose rows may lie apart, but not what is in them."""
    return heads if heads.stride()[1:] == (heads.shape[2], 1) else heads.contiguous()


def _declare(function: Any, arguments: list[Any]) -> Any:
    function.argtypes, function.restype = arguments, None
    return function
