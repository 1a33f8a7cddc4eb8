"""IBM Spyre as a platform, so far as finding the cards goes: it is never available before it has a runner."""

from core.accelerator import UnfinishedPlatform
from core.contracts.platform import Capabilities, Device, SchedulingLimits

_VENDOR = 0x1014
# Source: IBM's device plugin for Spyre.
_CARD, _PART_OF_CARD = 0x06A7, 0x06A8


class SpyrePlatform(UnfinishedPlatform):
    """Cards on the PCI bus of this machine, whole ones and virtual functions."""

    contract = (2, 0)
    name = "spyre"
    device_type = "cpu"
    summary = "IBM Spyre cards (found, but not used: it has no runner yet)"
    priority = 30

    _noun = "Spyre card"
    _nodes = ("dev/vfio/[0-9]*",)
    _packages = ("torch_spyre",)

    def capabilities(self, device: Device) -> Capabilities:
        """What a runner will accept at least: weights in float16, and static shapes, prompts apart from decodes.

        Source: Torch-Spyre documentation, key concepts; its memory lies in sticks of 128 bytes, 64 numbers in float16.
        """
        return Capabilities(
            dtypes=("float16",),
            block_sizes=(64,),
            features=frozenset(),
            scheduling=SchedulingLimits(separate_steps=True, token_multiple=64),
        )

    def _found(self) -> list[str] | str:
        cards = [card for card in self._host.cards(_VENDOR) if card.device in (_CARD, _PART_OF_CARD)]
        ids = f"no PCI {_VENDOR:04x}:{_CARD:04x} or {_VENDOR:04x}:{_PART_OF_CARD:04x}"
        return [self._noun] * len(cards) or self._absent(ids)
