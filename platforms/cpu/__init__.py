"""The CPU of this machine, through torch and the vendor library behind it.

platform.py   what it is and can do
attention.py  paged attention: batched decode, flash prefill
kernels.py    packed linear layers and the gated MLP
execution.py  one thread per physical core, pinned
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.cpu.platform import CpuPlatform

    return [CpuPlatform]
