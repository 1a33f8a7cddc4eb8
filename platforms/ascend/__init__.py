"""Huawei Ascend NPUs, through torch-npu. It has no kernels of its own yet.

platform.py  what the driver made devices of, and what an NPU can do
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.ascend.platform import AscendPlatform

    return [AscendPlatform]
