"""The level "ops": every declared kernel on its cases, dtype by dtype. What a case is and who serves it: kernels.py."""

from collections.abc import Iterator

from core.conformance import Options, Result
from core.conformance.kernels import LEVEL, check_kernels
from core.contracts.platform import Capabilities, Device, Platform


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Each dtype of the options, or all that the device declares; quick: the one that it prefers."""
    capabilities = platform.capabilities(device)
    yield from refused_dtypes(LEVEL, capabilities, options)
    for dtype in tried_dtypes(capabilities, options):
        yield from check_kernels(platform, device, dtype, options.seed, options.only)


def tried_dtypes(capabilities: Capabilities, options: Options) -> tuple[str, ...]:
    """What a level is run in: of the dtypes asked for, those that the device declares."""
    if options.dtypes is not None:
        return tuple(dtype for dtype in options.dtypes if dtype in capabilities.dtypes)
    return capabilities.dtypes[:1] if options.quick else capabilities.dtypes


def refused_dtypes(level: str, capabilities: Capabilities, options: Options) -> Iterator[Result]:
    """One result for each of the others: a device need not have every dtype."""
    for dtype in options.dtypes or ():
        if dtype not in capabilities.dtypes:
            reason = f"the device declares {', '.join(capabilities.dtypes)}"
            yield Result(level=level, subject="dtype", case=dtype, unsupported=reason)
