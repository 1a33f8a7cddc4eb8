"""The level "ops": every declared kernel on its cases, dtype by dtype. What a case is and who serves it: kernels.py."""

from collections.abc import Iterator

from core.conformance import Options, Result
from core.conformance.kernels import check_kernels
from core.contracts.platform import Capabilities, Device, Platform


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Every kernel in each dtype."""
    for dtype in tried_dtypes(platform.capabilities(device), options):
        yield from check_kernels(platform, device, dtype, options.seed, options.only)


def tried_dtypes(capabilities: Capabilities, options: Options) -> tuple[str, ...]:
    """The dtypes of the options, or all that the device declares; when it is quick, the one that it prefers."""
    return options.dtypes or capabilities.dtypes[: 1 if options.quick else None]
