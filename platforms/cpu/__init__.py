"""The CPU of this machine, through C++ kernels compiled for it, torch, and the vendor library behind that.

platform.py   what it is and can do
kernels.py    what stands in for the C++ kernels: packed linear layers and the gated MLP
attention.py  paged attention on torch operations, where there are no C++ kernels
isa/          how the C++ kernels use this processor's instructions
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.cpu.platform import CpuPlatform

    return [CpuPlatform]
