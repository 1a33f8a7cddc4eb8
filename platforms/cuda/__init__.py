"""NVIDIA GPUs, through a torch that was built for CUDA. It has no kernels of its own yet.

platform.py  what the driver says, and what a GPU can do
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.cuda.platform import CudaPlatform

    return [CudaPlatform]
