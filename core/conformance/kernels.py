"""Every declared case of every declared kernel, as a platform serves it, against the reference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from core.conformance import Result
from core.conformance.compare import difference
from core.contracts.kernels import Case, Kernel
from core.contracts.platform import Device, Platform
from core.execution.dispatch import resolve_kernels
from core.ledger import Ledger
from core.reference import KERNELS, assemble


def check_kernels(platform: Platform, device: Device, dtype: str, seed: int = 0) -> Iterator[Result]:
    """Whatever serves each kernel on this device: the platform's version, or what it is composed of."""
    kernels = resolve_kernels(platform, device, dtype, Ledger())
    for name in KERNELS:
        yield from check_kernel(KERNELS[name], getattr(kernels, name), dtype, device.torch_device, seed)


def check_kernel(
    kernel: Kernel, function: Callable[..., Any], dtype: str, torch_device: str, seed: int = 0
) -> Iterator[Result]:
    """One version of one kernel: the reference's signature, less the `Kernels` of a composed one."""
    reference = getattr(assemble({}), kernel.name)
    for case in kernel.cases(dtype, seed):
        problem = _problem(kernel, reference, function, case, dtype, torch_device)
        yield Result(subject=kernel.name, case=case.name, dtype=dtype, problem=problem)


def _problem(
    kernel: Kernel,
    reference: Callable[..., Any],
    function: Callable[..., Any],
    case: Case,
    dtype: str,
    device: str,
) -> str:
    expected = _called(kernel, reference, case.prepare, case.arguments)
    arguments = tuple(_moved(argument, device) for argument in case.arguments)
    try:
        # A prepared kernel owns its weights and may reorder them where they lie.
        weights = tuple(a.clone() if isinstance(a, Tensor) else a for a in case.prepare)
        actual = _called(kernel, function, tuple(_moved(weight, device) for weight in weights), arguments)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    for given, kept in zip(arguments, case.arguments, strict=True):
        if isinstance(kept, Tensor) and not torch.equal(given.cpu(), kept):
            return "wrote into its arguments"
    if len(actual) != len(expected):
        return f"returned {len(actual)} tensors, expected {len(expected)}"
    tolerance = kernel.tolerance[dtype]
    problems = (_difference(*pair, tolerance, device) for pair in zip(actual, expected, strict=True))
    return "; ".join(filter(None, problems))


def _difference(actual: Any, expected: Tensor, tolerance: Any, device: str) -> str:
    if not isinstance(actual, Tensor):
        return f"returned a {type(actual).__name__}, expected a tensor"
    if actual.device.type != torch.device(device).type:
        return f"returned a tensor on {actual.device}, expected {device}"
    return difference(actual, expected, tolerance)


def _called(
    kernel: Kernel, function: Callable[..., Any], prepare: tuple[Any, ...], arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    with torch.inference_mode():
        result = function(*prepare)(*arguments) if kernel.prepared else function(*arguments)
    return result if isinstance(result, tuple) else (result,)  # pyright: ignore[reportUnknownVariableType]


def _moved(argument: Any, device: str) -> Any:
    """A copy on the device; of a view into a wider tensor, a view just like it."""
    if not isinstance(argument, Tensor):
        return argument
    storage = torch.empty(0, dtype=argument.dtype).set_(argument.untyped_storage())
    whole = storage.clone().to(device)
    return whole.as_strided(argument.shape, argument.stride(), argument.storage_offset())
