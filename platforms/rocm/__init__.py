"""AMD GPUs, through a torch that was built for ROCm. It has no kernels of its own yet.

platform.py  what the kernel's compute driver says, and what a GPU can do
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.rocm.platform import RocmPlatform

    return [RocmPlatform]
