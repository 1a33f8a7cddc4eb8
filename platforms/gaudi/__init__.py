"""Intel Gaudi accelerators, through Habana's own torch. It has no kernels of its own yet.

platform.py  what the driver made devices of, and what a card can do
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.gaudi.platform import GaudiPlatform

    return [GaudiPlatform]
