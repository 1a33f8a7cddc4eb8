"""A platform on a torch device of its own. Nothing of torch is touched before the platform is chosen.

tensor.py     a torch device in Python, with memory of its own, on which no tensor of the host's is read by mistake
device.py     the device openreg:0, which is one
attention.py  paged attention, blocks lying head by head
kernels.py    three kernels
memory.py     what is free, and what becomes of discarded blocks
"""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core import hookimpl
from core.contracts.platform import Capabilities, Device, Platform, Probe

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.execution import Execution
    from core.contracts.kernels import Implementation
    from core.contracts.memory import Memory


class OpenregPlatform(Platform):
    """What torch reserves for devices that it does not know (PrivateUse1), under a name of ours."""

    contract = (2, 0)
    name = "openreg"
    device_type = "openreg"
    summary = "an example of a torch device from outside torch, simulated in Python"
    priority = -20

    def probe(self) -> Probe:
        if importlib.util.find_spec("torch") is None:
            return Probe(available=False, reason="torch is not installed")
        device = Device(name="openreg, in Python", torch_device="openreg:0")
        return Probe(available=True, reason="software, always there", devices=(device,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            dtypes=("float32", "bfloat16"),
            block_sizes=(32, 16),
            features=frozenset({"sliding_window", "soft_cap"}),
        )

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention":
        from openreg_platform.attention import OpenregAttention

        return OpenregAttention(spec)

    def memory(self, device: Device) -> "Memory":
        from openreg_platform.memory import OpenregMemory

        return OpenregMemory()

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        from openreg_platform.kernels import implementations

        return implementations()

    def execution(self, device: Device) -> "Execution":
        from core.reference.accelerator import AcceleratorExecution

        return AcceleratorExecution(device.torch_device, module="openreg_platform.device")


@hookimpl
def core_platforms() -> list[type[Platform]]:
    return [OpenregPlatform]
