"""A device's memory: what it counts, what it refuses, and that blocks of the cache move whole and to the bit.

Whoever serves the memory, the platform or the reference, is tried just the same. What is done to blocks stands in
`blocks`.
"""

import gc
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from core.conformance import Options, Result
from core.conformance.blocks import block_trials
from core.conformance.heads import head_dim_for
from core.conformance.kernels import raised
from core.contracts.attention import AttentionSpec
from core.contracts.memory import Memory
from core.contracts.platform import Capabilities, Device, Platform
from core.errors import OutOfDeviceMemory, UnsupportedShape
from core.execution.dispatch import resolve_attention, resolve_memory
from core.ledger import Ledger

_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 32


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Statistics and refusals once, tensors for each dtype, blocks for each dtype, cache dtype and block size.

    `quick` tries the preferred block size alone.
    """
    try:
        memory = resolve_memory(platform, device, Ledger())
        capabilities = platform.capabilities(device)
    except Exception as error:
        yield Result(level="memory", subject="memory", case="is made", problem=raised(error))
        return
    dtypes = options.dtypes or capabilities.dtypes
    yield from _bytes(memory, device, dtypes, capabilities.alignment_bytes)
    cache_dtypes = (None, *sorted(capabilities.kv_cache_dtypes))
    sizes = capabilities.block_sizes[:1] if options.quick else capabilities.block_sizes
    for dtype, cache_dtype, size in product(dtypes, cache_dtypes, sizes):
        spec = _spec(capabilities, dtype, cache_dtype, size)
        yield from _blocks(platform, device, memory, spec, options.seed)


def _bytes(memory: Memory, device: Device, dtypes: tuple[str, ...], alignment: int) -> Iterator[Result]:
    def take(dtype: str, count: int) -> Tensor:
        return memory.allocate(aligned(dtype, count, alignment), dtype)

    take_any = partial(take, dtypes[0])
    yield _tried("statistics", "what is allocated is counted", partial(_counts, memory, take_any))
    yield _tried("statistics", "garbage is given back", partial(_collects, memory, take_any))
    yield _tried("statistics", "figures fit together", partial(_fits, memory, take_any))
    yield _tried("allocate", "more than there is", partial(_refuses, memory, dtypes[0], alignment))
    for dtype in dtypes:
        trial = partial(_allocates, memory, device.torch_device, dtype, alignment)
        yield _tried("allocate", "what was asked for", trial, dtype)
        yield _tried("allocate", "tensors lie apart", partial(_apart, partial(take, dtype)), dtype)


def aligned(dtype: str, count: int, alignment: int) -> tuple[int, ...]:
    """The shape of a row of at least `count` elements, whose size in bytes is a multiple of `alignment`."""
    multiple = alignment // math.gcd(alignment, getattr(torch, dtype).itemsize)
    return (-(-count // multiple) * multiple,)


def _counts(memory: Memory, take: Callable[[int], Tensor]) -> str:
    gc.collect()
    start, kept = memory.statistics().allocated, list[Tensor]()
    for count in (1, 5_000, 70_001):
        before = memory.statistics().allocated
        kept.append(take(count))
        rise, size = memory.statistics().allocated - before, kept[-1].nbytes
        if rise < size:
            return f"allocated rose by {rise:,} for a tensor of {size:,} bytes"
    kept.clear()
    return _left(memory, start, "every tensor is gone")


def _collects(memory: Memory, take: Callable[[int], Tensor]) -> str:
    gc.collect()
    start = memory.statistics().allocated
    circle: list[Any] = [take(5_000)]
    circle.append(circle)
    del circle
    return _left(memory, start, "the tensor is garbage and was collected")


def _left(memory: Memory, start: int, when: str) -> str:
    gc.collect()
    left = memory.statistics().allocated - start
    return f"allocated is {left:+,} bytes from where it was, once {when}" if left else ""


def _fits(memory: Memory, take: Callable[[int], Tensor]) -> str:
    held = take(5_000)
    now = memory.statistics()
    if now.allocated >= held.nbytes and now.free >= 0 and now.free + now.allocated <= now.total:
        return ""
    return f"{now} with {held.nbytes:,} bytes taken; free >= 0 and free + allocated <= total are expected"


def _refuses(memory: Memory, dtype: str, alignment: int) -> str:
    before = memory.statistics()
    for size in (before.total + 1, 16 * before.total):
        shape = aligned(dtype, -(-size // getattr(torch, dtype).itemsize), alignment)
        try:
            memory.allocate(shape, dtype)
        except OutOfDeviceMemory as refusal:
            silent = not str(refusal)
        except Exception as error:
            return f"{raised(error)}; OutOfDeviceMemory is expected"
        else:
            return f"promised {list(shape)} of {dtype}, of {before.total:,} bytes in total"
        if silent:
            return "refused without a reason"
        left = memory.statistics().allocated - before.allocated
        if left:
            return f"allocated is {left:+,} bytes from where it was, once an allocation was refused"
    small = memory.allocate(aligned(dtype, 1, alignment), dtype).fill_(3)
    kept = bool((small == 3).all())
    return "" if kept else "what was allocated after a refusal does not keep what is written"


def _allocates(memory: Memory, torch_device: str, dtype: str, alignment: int) -> str:
    (width,) = aligned(dtype, 24, alignment)
    for shape in ((width,), (3, width), (2, 5, 1, width)):
        tensor = memory.allocate(shape, dtype)
        like = torch.empty(0, dtype=getattr(torch, dtype), device=torch_device)
        if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, like.dtype, like.device):
            given = f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            return f"returned {given}, expected {list(shape)} {like.dtype} on {like.device}"
        if not tensor.is_contiguous():
            return f"{list(shape)} is not dense: its strides are {tensor.stride()}"
        size = tensor.untyped_storage().nbytes()
        if size % alignment:
            return f"{list(shape)} takes {size:,} bytes; a multiple of {alignment} is expected"
    return ""


def _apart(take: Callable[[int], Tensor]) -> str:
    tensors = [take(count) for count in (100, 5_000, 100)]
    for number, tensor in enumerate(tensors, 1):
        tensor.fill_(number)
    changed = [i for i, tensor in enumerate(tensors, 1) if not bool((tensor == i).all())]
    return f"tensor {changed[0]} of {len(tensors)} does not keep what is written into it" if changed else ""


def _spec(capabilities: Capabilities, dtype: str, cache_dtype: str | None, size: int) -> AttentionSpec:
    head_dim = head_dim_for(capabilities, _HEAD_DIM)
    return AttentionSpec(
        num_heads=_HEADS,
        num_kv_heads=_KV_HEADS,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        dtype=dtype,
        block_size=size,
        cache_dtype=cache_dtype,
    )


def _blocks(
    platform: Platform, device: Device, memory: Memory, spec: AttentionSpec, seed: int
) -> Iterator[Result]:
    case = f"blocks of {spec.block_size}" + (f", kept in {spec.cache_dtype}" if spec.cache_dtype else "")
    try:
        attention = resolve_attention(platform, device, spec, Ledger())
        trials = block_trials(memory, attention, device, platform.capabilities(device), seed)
    except UnsupportedShape as error:
        yield Result(level="memory", subject="blocks", case=case, dtype=spec.dtype, unsupported=str(error))
        return
    except Exception as error:
        yield Result(level="memory", subject="blocks", case=case, dtype=spec.dtype, problem=raised(error))
        return
    for subject, name, trial in trials:
        yield _tried(subject, f"{case}, {name}" if name else case, trial, spec.dtype)


def _tried(subject: str, case: str, trial: Callable[[], str], dtype: str = "") -> Result:
    try:
        problem = trial()
    except Exception as error:
        problem = raised(error)
    return Result(level="memory", subject=subject, case=case, dtype=dtype, problem=problem)
