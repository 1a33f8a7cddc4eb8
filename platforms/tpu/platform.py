"""Google TPUs as a platform, so far as finding them goes: it is never available before it has a runner."""

from core.accelerator import UnfinishedPlatform
from core.contracts.platform import Capabilities, Device, SchedulingLimits

_VENDOR = 0x1AE0
# Source: JAX, jax/_src/hardware_utils.py.
_NAMES = {0x0027: "v2 or v3", 0x005E: "v4", 0x0062: "v5p", 0x0063: "v5e", 0x006F: "v6e", 0x0076: "7x"}


class TpuPlatform(UnfinishedPlatform):
    """Chips on the PCI bus of this machine."""

    contract = (2, 0)
    name = "tpu"
    device_type = "cpu"
    summary = "Google TPUs (found, but not used: it has no runner yet)"
    priority = 30

    _noun = "TPU"
    _nodes = ("dev/accel[0-9]*", "dev/vfio/[0-9]*")
    _packages = ("jax", "libtpu")

    def capabilities(self, device: Device) -> Capabilities:
        """What a runner will accept at least: the chips multiply in bfloat16, and every shape is compiled for.

        Source: Google Cloud TPU documentation, "System architecture".
        """
        return Capabilities(
            dtypes=("bfloat16",),
            features=frozenset(),
            scheduling=SchedulingLimits(separate_steps=True, token_multiple=8),
        )

    def _found(self) -> list[str] | str:
        chips = [card.device for card in self._host.cards(_VENDOR) if card.device in _NAMES]
        return [f"TPU {_NAMES[chip]}" for chip in chips] or self._absent(f"none of PCI vendor {_VENDOR:04x}")
