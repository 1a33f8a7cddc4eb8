"""Google TPUs. They are found; a runner for them, through JAX, is not written yet.

platform.py  what is on the bus, and what is missing
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.tpu.platform import TpuPlatform

    return [TpuPlatform]
