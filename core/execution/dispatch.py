"""Who serves each kernel and contract. Decided once, at load, and written to the ledger.

A platform's version is taken where it offers one that accepts the request; the reference serves the rest, and
the ledger says why. Nothing here runs again once a model is loaded.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from core import reference
from core.contracts.attention import Attention, AttentionSpec
from core.contracts.communication import Communication, Group
from core.contracts.execution import Execution
from core.contracts.kernels import Implementation, Kernel, KernelRequest, Kernels
from core.contracts.memory import Memory
from core.contracts.platform import Capabilities, Device, Platform
from core.errors import ContractViolation, UnsupportedShape
from core.ledger import Ledger, Rejection
from core.reference.attention import ReferenceAttention
from core.reference.communication import connect
from core.reference.execution import EagerExecution
from core.reference.memory import HostMemory

REFERENCE = "reference"

_Contract = TypeVar("_Contract")


def resolve_kernels(
    platform: Platform,
    device: Device,
    dtype: str,
    ledger: Ledger,
    attention: tuple[AttentionSpec, ...] = (),
) -> Kernels:
    """One function per declared kernel: the platform's, else composed of finer ones, else the reference.

    Raises ContractViolation listing everything the platform offers that is not a declared kernel's version.
    """
    offered = platform.kernels(device)
    _check_offer(platform, offered)
    request = KernelRequest(dtype=dtype, attention=attention)
    chosen: dict[str, Callable[..., Any]] = {}
    providers: dict[str, str] = {}
    rejected: dict[str, tuple[Rejection, ...]] = {}
    for name in reference.KERNELS:
        reason = offered[name].rejects(request) if name in offered else "has no version of its own"
        providers[name] = REFERENCE if reason else platform.name
        rejected[name] = (Rejection(provider=platform.name, reason=reason),) if reason else ()
        if not reason:
            chosen[name] = offered[name].function
    for name, kernel in reference.KERNELS.items():
        if kernel.composed and name not in chosen:
            ledger.record(name, "composed", _composition(kernel, providers), rejected=rejected[name])
        else:
            ledger.record(name, providers[name], rejected=rejected[name])
    return reference.assemble(chosen)


def resolve_attention(platform: Platform, device: Device, spec: AttentionSpec, ledger: Ledger) -> Attention:
    """The attention for layers of this spec.

    Raises UnsupportedShape when the device's manifest excludes the spec, whoever would serve it.
    """
    check_capabilities(platform, platform.capabilities(device), spec)
    try:
        own, reason = platform.attention(spec, device), "has none of its own"
    except UnsupportedShape as error:
        own, reason = None, str(error)
    return _choose(
        platform,
        "attention",
        Attention,
        own,
        lambda: ReferenceAttention(spec),
        ledger,
        _describe(spec),
        reason,
    )


def resolve_memory(platform: Platform, device: Device, ledger: Ledger) -> Memory:
    """The device's memory."""
    own = platform.memory(device)
    return _choose(platform, "memory", Memory, own, lambda: HostMemory(device.torch_device), ledger)


def resolve_execution(platform: Platform, device: Device, ledger: Ledger) -> Execution:
    """How the process is set up and the forward pass is run."""
    return _choose(platform, "execution", Execution, platform.execution(device), EagerExecution, ledger)


def resolve_communication(platform: Platform, group: Group, ledger: Ledger) -> Communication:
    """Collectives among the ranks of `group`; returns once all of them have called it."""
    own, detail = platform.communication(group), f"group of {group.size}"
    return _choose(platform, "communication", Communication, own, lambda: connect(group), ledger, detail)


def _choose(
    platform: Platform,
    what: str,
    contract: type[_Contract],
    own: _Contract | None,
    fallback: Callable[[], _Contract],
    ledger: Ledger,
    detail: str = "",
    reason: str = "has none of its own",
) -> _Contract:
    if own is None:
        ledger.record(what, REFERENCE, detail, rejected=(Rejection(provider=platform.name, reason=reason),))
        return fallback()
    if not isinstance(own, contract):
        raise ContractViolation(
            f"platform {platform.name}: {what}() returned a {type(own).__name__}; "
            f"expected None or a subclass of {contract.__module__}.{contract.__name__}"
        )
    ledger.record(what, platform.name, detail)
    return own


def _check_offer(platform: Platform, offered: Mapping[str, Any]) -> None:
    problems: list[str] = []
    for name, version in offered.items():
        if name not in reference.KERNELS:
            close = get_close_matches(name, reference.KERNELS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"declared: {', '.join(reference.KERNELS)}"
            problems.append(f"{name} is not a declared kernel; {hint}")
        elif not isinstance(version, Implementation):
            expected = f"{Implementation.__module__}.{Implementation.__name__}"
            problems.append(f"{name} is a {type(version).__name__}; expected {expected}")
    if problems:
        listed = "; ".join(problems)
        raise ContractViolation(f"platform {platform.name} offers kernels that break the contract: {listed}")


def _composition(kernel: Kernel, providers: Mapping[str, str]) -> str:
    return "of " + ", ".join(f"{part} ({providers[part]})" for part in kernel.composed)


def check_capabilities(platform: Platform, capabilities: Capabilities, spec: AttentionSpec) -> None:
    """Raises UnsupportedShape when the device's manifest excludes layers of this spec."""
    if capabilities.head_dims is not None and spec.head_dim not in capabilities.head_dims:
        accepted = ", ".join(map(str, capabilities.head_dims))
        raise UnsupportedShape(f"head_dim is {spec.head_dim}; platform {platform.name} accepts {accepted}")
    if spec.sliding_window is not None and "sliding_window" not in capabilities.features:
        raise UnsupportedShape(
            f"a layer has a sliding window of {spec.sliding_window} tokens; platform {platform.name} has no "
            f"sliding_window among its features ({', '.join(sorted(capabilities.features)) or 'none'})"
        )
    if spec.quantized and spec.cache_dtype not in capabilities.kv_cache_dtypes:
        accepted = ", ".join((spec.dtype, *sorted(capabilities.kv_cache_dtypes)))
        raise UnsupportedShape(
            f"keys and values are to be stored in {spec.cache_dtype}; platform {platform.name} accepts {accepted}"
        )
    if spec.block_size not in capabilities.block_sizes:
        accepted = ", ".join(map(str, capabilities.block_sizes))
        raise UnsupportedShape(
            f"block_size is {spec.block_size}; platform {platform.name} accepts {accepted}"
        )


def _describe(spec: AttentionSpec) -> str:
    seen = "full" if spec.sliding_window is None else f"window {spec.sliding_window}"
    kept = f", kept in {spec.cache_dtype}" if spec.quantized else ""
    return f"{spec.num_heads} heads of {spec.head_dim}, {spec.num_kv_heads} for keys and values, {seen}{kept}"
