"""Huawei Ascend as a platform. The driver's device files and CANN are looked for; torch is imported once chosen."""

from core.accelerator import AcceleratorPlatform, listed
from core.contracts.platform import Device

_LIBRARY = "libascendcl.so"
_VENDOR = 0x19E5
# PCI ids of Huawei's processors, which makes other cards as well. Source: the log collectors that come with CANN.
_NAMES = {
    0xD100: "Ascend 310",
    0xD500: "Ascend 310P",
    0xD801: "Ascend 910",
    0xD802: "Ascend 910B",
    0xD803: "Ascend 910C",
}
_BFLOAT16 = ("Ascend 910B", "Ascend 910C")


class AscendPlatform(AcceleratorPlatform):
    """NPUs that the driver serves; torch calls them npu. Attention and kernels are the reference's."""

    contract = (2, 0)
    name = "ascend"
    device_type = "npu"
    summary = "Huawei Ascend NPUs (kernels: the reference's, through torch)"
    priority = 40

    _noun = "Ascend NPU"
    _package = "torch_npu"
    _module = "torch_npu"
    _install = 'pip install "core[ascend]"'

    def _dtypes(self, device: Device) -> tuple[str, ...]:
        """bfloat16 came with the 910B. Source: Ascend documentation, data types of the aclnn operators by product."""
        return (*(("bfloat16",) if device.name in _BFLOAT16 else ()), "float16", "float32")

    def _found(self) -> list[str] | str:
        cards = [card for card in self._host.cards(_VENDOR) if card.device in _NAMES]
        nodes = self._host.files("dev/davinci[0-9]*")
        step = "install Huawei's driver, or pass /dev/davinci* into the container"
        if barred := self._barred(cards, nodes, "no /dev/davinci0", step):
            return barred
        kinds = {_NAMES[card.device] for card in cards}  # which of them a device file belongs to is not said
        names = [kinds.pop() if len(kinds) == 1 else self._noun] * len(nodes)
        if self._host.library(_LIBRARY) is None:
            return f"found {listed(names)}, but {_LIBRARY} was not found: install CANN, and source its set_env.sh"
        visible = self._host.visible(names, "ASCEND_RT_VISIBLE_DEVICES")
        return visible or f"ASCEND_RT_VISIBLE_DEVICES hides {listed(names)}"
