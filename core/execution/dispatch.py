"""Who serves each kernel and contract. Decided once, at load, and written to the ledger.

A platform's version is taken where it offers one that accepts the request; the reference serves the rest, and
the ledger says why. Nothing here runs again once a model is loaded.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from core import reference
from core.contracts.attention import Attention, AttentionSpec
from core.contracts.communication import Communication, Group
from core.contracts.execution import Execution
from core.contracts.kernels import Implementation, Kernel, KernelRequest, Kernels
from core.contracts.memory import Memory
from core.contracts.platform import Capabilities, Device, Platform
from core.contracts.surface import parameters, signature
from core.contracts.validation import object_problems
from core.errors import ContractViolation, UnsupportedShape
from core.execution.trust import distrusted, rejection
from core.ledger import Ledger, Rejection
from core.reference.attention import ReferenceAttention
from core.reference.communication import connect
from core.reference.execution import EagerExecution
from core.reference.memory import HostMemory

REFERENCE, COMPOSED = "reference", "composed"
"""Whom the ledger names as provider where the platform has no version: of the whole kernel, of a coarse one."""

_Contract = TypeVar("_Contract")


def resolve_kernels(
    platform: Platform,
    device: Device,
    dtype: str,
    ledger: Ledger,
    attention: tuple[AttentionSpec, ...] = (),
    *,
    tried: bool = False,
) -> Kernels:
    """One function per declared kernel: the platform's, else composed of finer ones, else the reference.

    tried  leave out what gives wrong results when it is tried (see `trust`)
    Raises ContractViolation listing everything the platform offers that is not a declared kernel's version.
    """
    offered = platform.kernels(device)
    _check_offer(platform, offered)
    request = KernelRequest(dtype=dtype, attention=attention)
    wrong = distrusted(platform, device, dtype, offered) if tried else {}
    chosen: dict[str, Callable[..., Any]] = {}
    providers: dict[str, str] = {}
    rejected: dict[str, tuple[Rejection, ...]] = {}
    for name in reference.KERNELS:
        reason = _rejection(name, offered, request) or wrong.get(name)
        providers[name] = REFERENCE if reason else platform.name
        rejected[name] = (Rejection(provider=platform.name, reason=reason),) if reason else ()
        if not reason:
            chosen[name] = offered[name].function
    for name, kernel in reference.KERNELS.items():
        if kernel.composed and name not in chosen:
            ledger.record(name, COMPOSED, _composition(kernel, providers), rejected=rejected[name])
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


def resolve_communication(platform: Platform, group: Group, device: Device, ledger: Ledger) -> Communication:
    """Collectives on `device` among the ranks of `group`; returns once all of them have called it."""
    own, detail = platform.communication(group, device), f"group of {group.size}"
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
    if problems := object_problems(own, contract, platform.contract):
        returned = f"{what}() returned a {type(own).__name__}"
        raise ContractViolation(f"platform {platform.name}: {returned}: {'; '.join(problems)}")
    ledger.record(what, platform.name, detail)
    return own


def _check_offer(platform: Platform, offered: Any) -> None:
    if not isinstance(offered, Mapping):
        returned = f"kernels() returned a {type(offered).__name__}"
        raise ContractViolation(f"platform {platform.name}: {returned}: Implementations by name are expected")
    problems: list[str] = []
    for name, version in cast(Mapping[Any, Any], offered).items():
        if name not in reference.KERNELS:
            close = get_close_matches(str(name), reference.KERNELS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"declared: {', '.join(reference.KERNELS)}"
            problems.append(f"{name} is not a declared kernel; {hint}")
        elif not isinstance(version, Implementation):
            expected = f"{Implementation.__module__}.{Implementation.__name__}"
            problems.append(f"{name} is a {type(version).__name__}; expected {expected}")
        elif not _takes(version.function, names := signature_of(reference.KERNELS[name])):
            problems.append(f"{name} cannot be called as {name}({', '.join(names)})")
    if problems:
        listed = "; ".join(problems)
        raise ContractViolation(f"platform {platform.name} offers kernels that break the contract: {listed}")


def signature_of(kernel: Kernel) -> tuple[str, ...]:
    """Names of the arguments that a platform's version of a kernel is called with."""
    names = parameters(kernel.reference)
    return names[1:] if kernel.composed else names


def _takes(function: Callable[..., Any], names: tuple[str, ...]) -> bool:
    try:
        signature(function).bind(*names)
    except TypeError:
        return False
    except ValueError:  # written in another language: nobody knows
        return True
    return True


def _rejection(name: str, offered: Mapping[str, Implementation], request: KernelRequest) -> str | None:
    return rejection(offered[name], request) if name in offered else "has no version of its own"


def _composition(kernel: Kernel, providers: Mapping[str, str]) -> str:
    return "of " + ", ".join(f"{part} ({providers[part]})" for part in kernel.composed)


def check_capabilities(platform: Platform, capabilities: Capabilities, spec: AttentionSpec) -> None:
    """Raises UnsupportedShape when the device's manifest excludes layers of this spec."""
    if capabilities.head_dims is not None and spec.head_dim not in capabilities.head_dims:
        accepted = ", ".join(map(str, capabilities.head_dims))
        raise UnsupportedShape(f"head_dim is {spec.head_dim}; platform {platform.name} accepts {accepted}")
    for feature, asked in _asked(spec):
        if feature not in capabilities.features:
            raise UnsupportedShape(
                f"{asked}; platform {platform.name} has no {feature} among its features "
                f"({', '.join(sorted(capabilities.features)) or 'none'})"
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


def _asked(spec: AttentionSpec) -> Iterator[tuple[str, str]]:
    """What layers of this spec ask for beyond causal full attention, by feature."""
    if spec.sliding_window is not None:
        yield "sliding_window", f"a layer has a sliding window of {spec.sliding_window} tokens"
    if spec.soft_cap is not None:
        yield "soft_cap", f"a layer caps its scores at {spec.soft_cap:g}"
    if spec.alibi:
        yield "alibi", "a layer weighs distance by ALiBi"
    if not spec.causal:
        yield "bidirectional", "a layer lets tokens see those that follow"
    if spec.latent is not None:
        yield "latent", f"a layer takes its values from the first {spec.latent} numbers of its keys"


def _describe(spec: AttentionSpec) -> str:
    seen = "full" if spec.sliding_window is None else f"window {spec.sliding_window}"
    cap = "" if spec.soft_cap is None else f", soft cap {spec.soft_cap:g}"
    alibi = ", ALiBi" if spec.alibi else ""
    alibi += "" if spec.causal else ", both ways"
    alibi += "" if spec.latent is None else f", values the first {spec.latent} of keys"
    kept = f", kept in {spec.cache_dtype}" if spec.quantized else ""
    heads = f"{spec.num_heads} heads of {spec.head_dim}, {spec.num_kv_heads} for keys and values"
    return f"{heads}, {seen}{cap}{alibi}{kept}"
