"""Intel Gaudi as a platform. The device files of its driver are looked for; torch is imported only once chosen.

Gaudi's software comes with a torch of its own, 2.9 in its release 1.23, and the core asks for 2.11: until the two meet,
cards are found and cannot be used.
"""

from pathlib import Path

from core.accelerator import AcceleratorPlatform, listed
from core.contracts.platform import Device

_LIBRARIES = ("libSynapse.so", "libSynapse.so.1", "/usr/lib/habanalabs/libSynapse.so")
_VENDOR = 0x1DA3
# Source: Linux, drivers/accel/habanalabs, the PCI ids of its cards; those below 0x1000 are Goya and Greco.
_FIRST = 0x1000
_NAMES = ((0x1060, "Intel Gaudi 3"), (0x1020, "Intel Gaudi 2"), (_FIRST, "Intel Gaudi"))


class GaudiPlatform(AcceleratorPlatform):
    """Cards that the habanalabs driver serves; torch calls them hpu. Attention and kernels are the reference's."""

    contract = (2, 0)
    name = "gaudi"
    device_type = "hpu"
    summary = "Intel Gaudi accelerators (kernels: the reference's, through torch)"
    priority = 40

    _noun = "Intel Gaudi card"
    _package = "habana_frameworks"
    _module = "habana_frameworks.torch"
    _install = "it comes with Intel's Gaudi software and the torch built for it, see https://docs.habana.ai"

    def _dtypes(self, device: Device) -> tuple[str, ...]:
        """float16 came with the second generation. Source: Gaudi documentation, PyTorch operators."""
        return ("bfloat16", *(("float16",) if device.name != _NAMES[-1][1] else ()), "float32")

    def _found(self) -> list[str] | str:
        cards = [card for card in self._host.cards(_VENDOR) if card.device >= _FIRST]
        devices = self._devices()
        lacking = "no /dev/accel/accel* or /dev/hl* of its driver"
        step = "load the habanalabs driver, or start the container with --runtime=habana"
        if barred := self._barred(cards, [node for node, _ in devices], lacking, step):
            return barred
        names = [_name(self._host.text(folder / "device/device")) for _, folder in devices]
        if self._host.library(*_LIBRARIES) is None:
            return f"found {listed(names)}, but {_LIBRARIES[0]} was not found: install habanalabs-graph"
        return names

    def _devices(self) -> list[tuple[Path, Path]]:
        """Device files, each with its folder in /sys/class: of the kernel's accel devices those of this vendor."""
        classes = Path("sys/class")
        accel = [(node, classes / "accel" / node.name) for node in self._host.files("dev/accel/accel[0-9]*")]
        ours = [
            (node, at) for node, at in accel if self._host.text(at / "device/vendor") == f"{_VENDOR:#06x}"
        ]
        older = [(node, classes / "habanalabs" / node.name) for node in self._host.files("dev/hl[0-9]*")]
        return ours + older


def _name(device_id: str) -> str:
    """By the PCI id as /sys writes it, "0x1020"."""
    try:
        number = int(device_id, 16)
    except ValueError:
        number = _FIRST
    return next((name for first, name in _NAMES if number >= first), _NAMES[-1][1])
