"""Every declared case of every declared kernel, as a platform serves it, against the reference."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.conformance import Result
from core.conformance.compare import difference
from core.conformance.paging import cached, padded
from core.contracts.attention import Attention, AttentionSpec
from core.contracts.kernels import Arguments, CachedSequences, Case, Kernel
from core.contracts.platform import Capabilities, Device, Platform
from core.execution.dispatch import resolve_attention, resolve_kernels
from core.ledger import Ledger
from core.reference import KERNELS, assemble
from core.reference.attention import ReferenceAttention


@dataclass(frozen=True, kw_only=True)
class Side:
    """Where a kernel is tried, and what attends there."""

    torch_device: str = "cpu"
    attention: Callable[[AttentionSpec], Attention] = ReferenceAttention
    capabilities: Capabilities = field(default_factory=Capabilities)


def platform_side(platform: Platform, device: Device) -> Side:
    """A platform's own attention and limits."""

    def attention(spec: AttentionSpec) -> Attention:
        return resolve_attention(platform, device, spec, Ledger())

    capabilities = platform.capabilities(device)
    return Side(torch_device=device.torch_device, attention=attention, capabilities=capabilities)


def check_kernels(platform: Platform, device: Device, dtype: str, seed: int = 0) -> Iterator[Result]:
    """Whatever serves each kernel on this device: the platform's version, or what it is composed of."""
    kernels, side = resolve_kernels(platform, device, dtype, Ledger()), platform_side(platform, device)
    for name in KERNELS:
        yield from check_kernel(KERNELS[name], getattr(kernels, name), dtype, side, seed)


def check_kernel(
    kernel: Kernel, function: Callable[..., Any], dtype: str, side: Side, seed: int = 0
) -> Iterator[Result]:
    """One version of one kernel: the reference's signature, less the `Kernels` of a composed one."""
    reference = getattr(assemble({}), kernel.name)
    for case in kernel.cases(dtype, seed):
        problem = _problem(kernel, reference, function, case, dtype, side)
        yield Result(subject=kernel.name, case=case.name, dtype=dtype, problem=problem)


def _problem(
    kernel: Kernel,
    reference: Callable[..., Any],
    function: Callable[..., Any],
    case: Case,
    dtype: str,
    side: Side,
) -> str:
    expected, _ = _called(kernel, reference, case, dtype, Side())
    try:
        actual, arguments = _called(kernel, function, case, dtype, side)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    pairs = list(zip(arguments, case.arguments, strict=True))
    for given, kept in pairs[kernel.given_away :]:
        if isinstance(kept, Tensor) and not torch.equal(given[: len(kept)].cpu(), kept):
            return "wrote into its arguments"
    if len(actual) != len(expected):
        return f"returned {len(actual)} tensors, expected {len(expected)}"
    tolerance = kernel.tolerance[dtype]
    problems = (
        _difference(*pair, tolerance, side.torch_device) for pair in zip(actual, expected, strict=True)
    )
    return "; ".join(filter(None, problems))


def _difference(actual: Any, expected: Tensor, tolerance: Any, device: str) -> str:
    if not isinstance(actual, Tensor):
        return f"returned a {type(actual).__name__}, expected a tensor"
    if actual.device.type != torch.device(device).type:
        return f"returned a tensor on {actual.device}, expected {device}"
    return difference(actual, expected, tolerance)


def _called(
    kernel: Kernel, function: Callable[..., Any], case: Case, dtype: str, side: Side
) -> tuple[tuple[Any, ...], Arguments]:
    """What a version returns, and the arguments it was given, which a faulty one has written into."""
    # A prepared kernel owns its weights and may reorder them where they lie.
    prepare = tuple(_moved(weight, side.torch_device) for weight in case.prepare)
    arguments = tuple(_moved(argument, side.torch_device) for argument in case.arguments)
    with torch.inference_mode():
        if case.cached is not None:
            return _attending(function, case.cached, prepare, arguments, dtype, side)
        result = function(*prepare)(*arguments) if kernel.prepared else function(*arguments)
    return _as_tuple(result), arguments


def _attending(
    function: Callable[..., Any],
    sequences: CachedSequences,
    prepare: Arguments,
    arguments: Arguments,
    dtype: str,
    side: Side,
) -> tuple[tuple[Any, ...], Arguments]:
    """The results' rows of real tokens, and the arguments as they were given, padding included."""
    limits, size = side.capabilities.scheduling, side.capabilities.block_sizes[0]
    attention = side.attention(AttentionSpec(**asdict(sequences.shape), dtype=dtype, block_size=size))
    cache, batch = cached(
        attention, sequences, token_multiple=limits.token_multiple, torch_device=side.torch_device
    )
    rows = sum(new for new, _ in sequences.sequences)
    filled = tuple(
        padded(argument.cpu(), len(batch.slot_mapping), side.torch_device) if argument is not None else None
        for argument in arguments
    )
    result = _as_tuple(function(attention, *prepare)(*filled, cache, attention.plan(batch)))
    return tuple(part[:rows] if isinstance(part, Tensor) else part for part in result), filled


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)  # pyright: ignore[reportUnknownVariableType]


def _moved(argument: Any, device: str) -> Any:
    """A copy on the device; of a view into a wider tensor, a view just like it; of weights, each of them."""
    if is_dataclass(argument) and not isinstance(argument, type):
        return replace(
            argument, **{f.name: _moved(getattr(argument, f.name), device) for f in fields(argument)}
        )
    if not isinstance(argument, Tensor):
        return argument
    storage = torch.empty(0, dtype=argument.dtype).set_(argument.untyped_storage())
    whole = storage.clone().to(device)
    return whole.as_strided(argument.shape, argument.stride(), argument.storage_offset())
