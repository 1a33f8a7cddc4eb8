"""Every declared case of every declared kernel, as a platform serves it, against the reference.

Kernels that take weights are also tried with quantised ones, in every format that the platform's manifest declares.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from core.conformance import Result
from core.conformance.compare import difference
from core.conformance.paging import cached, padded
from core.conformance.quantized import quantized_cases
from core.contracts.attention import Attention, AttentionSpec
from core.contracts.kernels import (
    Arguments,
    CachedSequences,
    Case,
    Implementation,
    Kernel,
    KernelRequest,
    Kernels,
    Tolerance,
)
from core.contracts.platform import Capabilities, Device, Platform
from core.contracts.quantization import FORMATS, QuantizedWeight
from core.errors import UnsupportedShape
from core.execution.dispatch import resolve_attention, resolve_kernels
from core.ledger import Ledger
from core.reference import KERNELS, assemble
from core.reference.attention import ReferenceAttention

LEVEL = "ops"


@dataclass(frozen=True, kw_only=True)
class Side:
    """Where a kernel is tried, and what attends there. `attention` raises UnsupportedShape for what is not done."""

    torch_device: str = "cpu"
    attention: Callable[[AttentionSpec], Attention] = ReferenceAttention
    capabilities: Capabilities = field(default_factory=Capabilities)

    def spec(self, case: Case, dtype: str) -> AttentionSpec | None:
        """What a layer like this case asks of attention here; None of a kernel that does not attend."""
        if case.cached is None:
            return None
        size = self.capabilities.block_sizes[0]
        return AttentionSpec(**asdict(case.cached.shape), dtype=dtype, block_size=size)

    def attending(self, case: Case, dtype: str) -> Attention | None:
        """What attends here for a case. Raises UnsupportedShape when the device is not made for it."""
        spec, limits = self.spec(case, dtype), self.capabilities.scheduling
        if spec is None or case.cached is None:
            return None
        news = [new for new, _ in case.cached.sequences]
        if limits.max_num_seqs is not None and len(news) > limits.max_num_seqs:
            holds = f"a step of this device holds {limits.max_num_seqs} (max_num_seqs)"
            raise UnsupportedShape(f"{len(news)} sequences; {holds}")
        if limits.separate_steps and 1 in news and max(news) > 1:
            raise UnsupportedShape("decodes beside prompts; this device's steps hold either (separate_steps)")
        return self.attention(spec)


def platform_side(platform: Platform, device: Device) -> Side:
    """A platform's own attention and limits."""

    def attention(spec: AttentionSpec) -> Attention:
        return resolve_attention(platform, device, spec, Ledger())

    capabilities = platform.capabilities(device)
    return Side(torch_device=device.torch_device, attention=attention, capabilities=capabilities)


class Versions:
    """Who serves each kernel on a device, request by request, as `dispatch` has it.

    Raises ContractViolation, and whatever the platform raises, when it is asked.
    """

    def __init__(self, platform: Platform, device: Device, dtype: str) -> None:
        self._platform, self._device, self._dtype = platform, device, dtype
        self._offered = platform.kernels(device)
        self._resolved: dict[AttentionSpec | None, Kernels] = {}
        self.serving("linear")  # a broken offer is found at once
        for name in self._offered:
            self.rejection(name)  # and so is one that cannot say whom it serves

    def serving(self, kernel: str, spec: AttentionSpec | None = None) -> Callable[..., Any]:
        """The platform's version, or what stands in for it."""
        if spec not in self._resolved:
            asked = () if spec is None else (spec,)
            self._resolved[spec] = resolve_kernels(self._platform, self._device, self._dtype, Ledger(), asked)
        return getattr(self._resolved[spec], kernel)

    def rejection(self, kernel: str, spec: AttentionSpec | None = None) -> str:
        """Why the platform's own version does not serve; "" when it does, or there is none."""
        own: Implementation | None = self._offered.get(kernel)
        request = KernelRequest(dtype=self._dtype, attention=() if spec is None else (spec,))
        return "" if own is None else own.rejects(request) or ""


def check_kernels(
    platform: Platform, device: Device, dtype: str, seed: int = 0, only: str = ""
) -> Iterator[Result]:
    """Whatever serves each kernel on this device: the platform's version, or what stands in for one that rejects it.

    That it rejects is a result of its own, "not supported" for its reason. `only` is what the name of a case must
    contain to be tried.
    """
    try:
        side, versions = platform_side(platform, device), Versions(platform, device, dtype)
    except Exception as error:
        case, problem = "what is offered", raised(error)
        yield Result(level=LEVEL, subject="kernels", case=case, dtype=dtype, problem=problem)
        return
    for name in sorted(side.capabilities.weight_formats - FORMATS.keys()):
        problem = f"is not a declared format; declared: {', '.join(FORMATS)}"
        yield Result(level=LEVEL, subject="weight format", case=name, dtype=dtype, problem=problem)
    for kernel in KERNELS.values():
        yield from _check_served(kernel, versions, dtype, side, seed, only)


def check_kernel(
    kernel: Kernel, function: Callable[..., Any], dtype: str, side: Side, seed: int = 0
) -> Iterator[Result]:
    """One version of one kernel: the reference's signature, less the `Kernels` of a composed one."""
    for case, tolerance in cases_of(kernel, dtype, side, seed):
        yield check_case(kernel, function, case, tolerance, dtype, side)


def check_case(
    kernel: Kernel, function: Callable[..., Any], case: Case, tolerance: Tolerance, dtype: str, side: Side
) -> Result:
    """One version on one case; not supported where the device's attention is not made for it."""
    found = Result(level=LEVEL, subject=kernel.name, case=case.name, dtype=dtype)
    try:
        attention = side.attending(case, dtype)
    except UnsupportedShape as error:
        return replace(found, unsupported=str(error))
    except Exception as error:
        return replace(found, problem=raised(error))
    known = reference_trial(kernel, case, dtype, Side())
    expected = known.result()
    try:
        tried = trial(kernel, function, case, side, attention)
        actual = tried.result()
    except Exception as error:
        return replace(found, problem=raised(error))
    actual, expected = (*actual, *tried.updated(kernel)), (*expected, *known.updated(kernel))
    problem = _stray_writes(kernel, case, tried) or _differences(actual, expected, tolerance, side)
    return replace(found, problem=problem)


def cases_of(kernel: Kernel, dtype: str, side: Side, seed: int) -> Iterator[tuple[Case, Tolerance]]:
    """The declared ones, and those with weights in the formats that this side takes."""
    yield from ((case, kernel.tolerance[dtype]) for case in kernel.cases(dtype, seed))
    for name, format in FORMATS.items():
        if name in side.capabilities.weight_formats:
            yield from quantized_cases(kernel.name, format, dtype, seed)


def raised(error: BaseException) -> str:
    """An exception as a problem."""
    return f"raised {type(error).__name__}: {error}"


def _check_served(
    kernel: Kernel, versions: Versions, dtype: str, side: Side, seed: int, only: str
) -> Iterator[Result]:
    known: set[str] = set()
    for case, tolerance in cases_of(kernel, dtype, side, seed):
        spec = side.spec(case, dtype)
        try:
            reason, function = versions.rejection(kernel.name, spec), versions.serving(kernel.name, spec)
        except Exception as error:
            problem = raised(error)
            yield Result(level=LEVEL, subject=kernel.name, case=case.name, dtype=dtype, problem=problem)
            continue
        if reason and reason not in known:
            known.add(reason)
            own = f"the platform's own version, {case.name}"
            yield Result(level=LEVEL, subject=kernel.name, case=own, dtype=dtype, unsupported=reason)
        if only in f"{kernel.name}, {case.name}":
            yield check_case(kernel, function, case, tolerance, dtype, side)


def _stray_writes(kernel: Kernel, case: Case, tried: "Trial") -> str:
    for i, (given, kept) in enumerate(zip(tried.arguments, case.arguments, strict=True)):
        if i < kernel.given_away or i in kernel.updates:
            continue
        if isinstance(kept, Tensor) and not torch.equal(given[: len(kept)].cpu(), kept):
            return "wrote into its arguments"
    for given, kept in zip(_stored(tried.prepare), _stored(case.prepare), strict=True):
        if not torch.equal(given.cpu(), kept):
            return "wrote into a quantised weight, which may be a file"
    return ""


def _stored(prepare: Arguments) -> list[Tensor]:
    """The bytes of quantised weights among these."""
    found: list[Tensor] = []
    for argument in prepare:
        if isinstance(argument, QuantizedWeight):
            found.append(argument.data)
        elif isinstance(argument, tuple):
            found += _stored(cast(Arguments, argument))
        elif is_dataclass(argument):
            found += _stored(tuple(getattr(argument, part.name) for part in fields(argument)))
    return found


def _differences(actual: Arguments, expected: Arguments, tolerance: Tolerance, side: Side) -> str:
    if len(actual) != len(expected):
        return f"returned {len(actual)} tensors, expected {len(expected)}"
    pairs = zip(actual, expected, strict=True)
    return "; ".join(filter(None, (_difference(*pair, tolerance, side.torch_device) for pair in pairs)))


def _difference(actual: Any, expected: Tensor, tolerance: Tolerance, device: str) -> str:
    if not isinstance(actual, Tensor):
        return f"returned a {type(actual).__name__}, expected a tensor"
    if actual.device.type != torch.device(device).type:
        return f"returned a tensor on {actual.device}, expected {device}"
    return difference(actual, expected, tolerance)


@dataclass(frozen=True)
class Trial:
    """A version of a kernel that has its weights, and the inputs of a case, on one side.

    call       what it does in a step; may be repeated, and is called in inference mode
    prepare    what it was given first
    arguments  those of the call that are a case's; a faulty version writes into them
    rows       how many rows of its results are asked for, padding excluded; None: all
    """

    call: Callable[[], Any]
    prepare: Arguments
    arguments: Arguments
    rows: int | None = None

    def result(self) -> Arguments:
        """Call it once; one result or several."""
        with torch.inference_mode():
            result = self.call()
        parts = _as_tuple(result)
        if self.rows is None:
            return parts
        return tuple(part[: self.rows] if isinstance(part, Tensor) else part for part in parts)

    def updated(self, kernel: Kernel) -> Arguments:
        """The arguments that it changes in place, as they are now."""
        return tuple(self.arguments[i] for i in kernel.updates)


def _as_tuple(result: Any) -> Arguments:
    return result if isinstance(result, tuple) else (result,)  # pyright: ignore[reportUnknownVariableType]


def trial(
    kernel: Kernel, function: Callable[..., Any], case: Case, side: Side, attention: Attention | None
) -> Trial:
    """This version, prepared. `attention` is that of the side, for a kernel that attends."""
    # A prepared kernel owns its tensors and may reorder them where they lie.
    prepare = tuple(_moved(weight, side.torch_device) for weight in case.prepare)
    with torch.inference_mode():
        if attention is not None and case.cached is not None:
            return _attending(function, case.arguments, case.cached, prepare, side, attention)
        arguments = tuple(_moved(argument, side.torch_device) for argument in case.arguments)
        step = function(*prepare) if kernel.prepared else function
    return Trial(partial(step, *arguments), prepare, arguments)


def reference_trial(kernel: Kernel, case: Case, dtype: str, side: Side) -> Trial:
    """The reference, attention included, where this side computes and within its limits."""
    spec = side.spec(case, dtype)
    attention = None if spec is None else ReferenceAttention(spec)
    return trial(kernel, getattr(assemble({}), kernel.name), case, side, attention)


def _attending(
    function: Callable[..., Any],
    arguments: Arguments,
    sequences: CachedSequences,
    prepare: Arguments,
    side: Side,
    attention: Attention,
) -> Trial:
    device, multiple = side.torch_device, side.capabilities.scheduling.token_multiple
    cache, batch = cached(attention, sequences, token_multiple=multiple, torch_device=device)
    rows, wanted = sum(new for new, _ in sequences.sequences), None
    if sequences.rows is not None:
        wanted = torch.tensor(sequences.rows, dtype=torch.int64, device=device)
        rows = len(wanted)
    count = len(batch.slot_mapping)
    filled = tuple(None if argument is None else padded(argument, count, device) for argument in arguments)
    step = function(attention, *prepare)
    return Trial(partial(step, *filled, cache, attention.plan(batch), wanted), prepare, filled, rows)


def _moved(argument: Any, device: str) -> Any:
    """A copy on the device; of a view into a wider tensor, a view just like it; of weights, each of them."""
    if is_dataclass(argument) and not isinstance(argument, type):
        return replace(
            argument, **{f.name: _moved(getattr(argument, f.name), device) for f in fields(argument)}
        )
    if isinstance(argument, tuple):
        return tuple(_moved(part, device) for part in cast(Arguments, argument))
    if not isinstance(argument, Tensor):
        return argument
    storage = torch.empty(0, dtype=argument.dtype).set_(argument.untyped_storage())
    whole = storage.clone().to(device)
    return whole.as_strided(argument.shape, argument.stride(), argument.storage_offset())
