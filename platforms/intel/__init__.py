"""Intel GPUs, through a torch that was built for them. It has no kernels of its own yet.

platform.py  what Level Zero says, and what a GPU can do
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.intel.platform import IntelPlatform

    return [IntelPlatform]
