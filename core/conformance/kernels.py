"""Every declared case of every declared kernel, as a platform serves it, against the reference.

Kernels that take weights are also tried with quantised ones, in every format that the platform's manifest declares.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.conformance import Result
from core.conformance.compare import difference
from core.conformance.paging import cached, padded
from core.conformance.quantized import quantized_cases
from core.contracts.attention import Attention, AttentionSpec
from core.contracts.kernels import Arguments, CachedSequences, Case, Kernel, Tolerance
from core.contracts.platform import Capabilities, Device, Platform
from core.contracts.quantization import FORMATS, QuantizedWeight
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
    for name in sorted(side.capabilities.weight_formats - FORMATS.keys()):
        problem = f"is not a declared format; declared: {', '.join(FORMATS)}"
        yield Result(subject="weight format", case=name, dtype=dtype, problem=problem)
    for name in KERNELS:
        yield from check_kernel(KERNELS[name], getattr(kernels, name), dtype, side, seed)


def check_kernel(
    kernel: Kernel, function: Callable[..., Any], dtype: str, side: Side, seed: int = 0
) -> Iterator[Result]:
    """One version of one kernel: the reference's signature, less the `Kernels` of a composed one."""
    for case, tolerance in _cases(kernel, dtype, side, seed):
        problem = _problem(kernel, function, case, tolerance, dtype, side)
        yield Result(subject=kernel.name, case=case.name, dtype=dtype, problem=problem)


def _cases(kernel: Kernel, dtype: str, side: Side, seed: int) -> Iterator[tuple[Case, Tolerance]]:
    yield from ((case, kernel.tolerance[dtype]) for case in kernel.cases(dtype, seed))
    for name, format in FORMATS.items():
        if name in side.capabilities.weight_formats:
            yield from quantized_cases(kernel.name, format, dtype, seed)


def _problem(
    kernel: Kernel, function: Callable[..., Any], case: Case, tolerance: Tolerance, dtype: str, side: Side
) -> str:
    expected = _called(kernel, getattr(assemble({}), kernel.name), case, dtype, Side()).result
    try:
        called = _called(kernel, function, case, dtype, side)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    actual, pairs = called.result, list(zip(called.arguments, case.arguments, strict=True))
    for given, kept in pairs[kernel.given_away :]:
        if isinstance(kept, Tensor) and not torch.equal(given[: len(kept)].cpu(), kept):
            return "wrote into its arguments"
    for given, kept in zip(_stored(called.prepare), _stored(case.prepare), strict=True):
        if not torch.equal(given.cpu(), kept):
            return "wrote into a quantised weight, which may be a file"
    if len(actual) != len(expected):
        return f"returned {len(actual)} tensors, expected {len(expected)}"
    problems = (
        _difference(*pair, tolerance, side.torch_device) for pair in zip(actual, expected, strict=True)
    )
    return "; ".join(filter(None, problems))


def _stored(prepare: Arguments) -> list[Tensor]:
    """The bytes of quantised weights among these."""
    found: list[Tensor] = []
    for argument in prepare:
        if isinstance(argument, QuantizedWeight):
            found.append(argument.data)
        elif is_dataclass(argument):
            found += _stored(tuple(getattr(argument, part.name) for part in fields(argument)))
    return found


def _difference(actual: Any, expected: Tensor, tolerance: Tolerance, device: str) -> str:
    if not isinstance(actual, Tensor):
        return f"returned a {type(actual).__name__}, expected a tensor"
    if actual.device.type != torch.device(device).type:
        return f"returned a tensor on {actual.device}, expected {device}"
    return difference(actual, expected, tolerance)


@dataclass(frozen=True)
class _Call:
    """What a version returned, and what it was given, which a faulty one has written into."""

    result: tuple[Any, ...]
    prepare: Arguments
    arguments: Arguments


def _called(kernel: Kernel, function: Callable[..., Any], case: Case, dtype: str, side: Side) -> _Call:
    # A prepared kernel owns its tensors and may reorder them where they lie.
    prepare = tuple(_moved(weight, side.torch_device) for weight in case.prepare)
    arguments = tuple(_moved(argument, side.torch_device) for argument in case.arguments)
    with torch.inference_mode():
        if case.cached is not None:
            return _attending(function, case.cached, prepare, arguments, dtype, side)
        result = function(*prepare)(*arguments) if kernel.prepared else function(*arguments)
    return _Call(_as_tuple(result), prepare, arguments)


def _attending(
    function: Callable[..., Any],
    sequences: CachedSequences,
    prepare: Arguments,
    arguments: Arguments,
    dtype: str,
    side: Side,
) -> _Call:
    """The results' rows of real tokens, and the arguments as they were given, padding included."""
    limits, size = side.capabilities.scheduling, side.capabilities.block_sizes[0]
    attention = side.attention(AttentionSpec(**asdict(sequences.shape), dtype=dtype, block_size=size))
    cache, batch = cached(
        attention, sequences, token_multiple=limits.token_multiple, torch_device=side.torch_device
    )
    wanted = None
    if sequences.rows is not None:
        wanted = torch.tensor(sequences.rows, dtype=torch.int64, device=side.torch_device)
    rows = sum(new for new, _ in sequences.sequences) if wanted is None else len(wanted)
    filled = tuple(
        padded(argument.cpu(), len(batch.slot_mapping), side.torch_device) if argument is not None else None
        for argument in arguments
    )
    result = _as_tuple(function(attention, *prepare)(*filled, cache, attention.plan(batch), wanted))
    return _Call(tuple(part[:rows] if isinstance(part, Tensor) else part for part in result), prepare, filled)


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
