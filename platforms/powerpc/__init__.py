"""POWER processors, little-endian Linux: the core's C++ kernels with VSX inner products.

platform.py   what it is and can do
isa/isa.h     inner products for VSX
isa/outer.h   products of whole tiles, for POWER10
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.powerpc.platform import PowerPcPlatform

    return [PowerPcPlatform]
