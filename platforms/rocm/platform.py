"""AMD GPUs as a platform. The compute driver lists them in /sys; torch is imported only once it is chosen.

No HIP library is looked for: torch's build for ROCm brings its own, and one of another version beside it would do harm.
"""

import re

from core.accelerator import AcceleratorPlatform
from core.contracts.platform import Device

_VENDOR = 0x1002
_CARDS = (0x03, 0x12)  # PCI base classes: displays, and processing accelerators
# Targets with matrix instructions in bfloat16: CDNA (gfx908 and on), RDNA 3 and RDNA 4.
# Source: the LLVM AMDGPU guide, and AMD's matrix instruction calculator (v_mfma_*bf16, v_wmma_*bf16).
_BFLOAT16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")


class RocmPlatform(AcceleratorPlatform):
    """GPUs that the compute driver offers; torch calls them cuda. Attention and kernels are the reference's."""

    contract = (2, 0)
    name = "rocm"
    device_type = "cuda"
    summary = "AMD GPUs (kernels: the reference's, through torch)"
    priority = 50

    _noun = "AMD GPU"
    _build = "hip"
    _install = "install torch for ROCm, see https://pytorch.org/get-started/locally"

    def _dtypes(self, device: Device) -> tuple[str, ...]:
        targets = self._targets()
        target = targets[device.index] if device.index < len(targets) else ""
        return (*(("bfloat16",) if target.startswith(_BFLOAT16) else ()), "float16", "float32")

    def _found(self) -> list[str] | str:
        cards = [card for card in self._host.cards(_VENDOR) if card.class_code >> 16 in _CARDS]
        step = "install amdgpu-dkms, or pass /dev/kfd and /dev/dri into the container"
        if barred := self._barred(cards, self._host.files("dev/kfd"), "/dev/kfd not found", step):
            return barred
        targets = self._targets()
        if not targets:
            return "the AMD driver offers no GPU (none in /sys/class/kfd); ROCR_VISIBLE_DEVICES may hide it"
        return [f"AMD GPU ({target})" for target in targets]

    def _targets(self) -> list[str]:
        """The GPUs' instruction sets in the driver's order; its other nodes are processors.

        Source: ROCm documentation, GPU isolation techniques. HIP looks at the second of its variables if the first
        is not set.
        """
        nodes = self._host.files("sys/class/kfd/kfd/topology/nodes/*/properties")
        versions = [_property(self._host.text(node), "gfx_target_version") for node in nodes]
        targets = [_target(version) for version in versions if version]
        of_hip = [
            name for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if name in self._host.environment
        ]
        return self._host.visible(targets, "ROCR_VISIBLE_DEVICES", *of_hip[:1])


def _property(text: str, name: str) -> int:
    """From lines of "name number"; 0 when it is not among them."""
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _target(version: int) -> str:
    """90402 -> "gfx942", 90010 -> "gfx90a": two decimal digits each of minor version and step, written as one hex."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
