"""IBM Spyre cards. They are found; a runner for them, of static shapes, is not written yet.

platform.py  what is on the bus, and what is missing
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.spyre.platform import SpyrePlatform

    return [SpyrePlatform]
