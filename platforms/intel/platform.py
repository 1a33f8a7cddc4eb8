"""Intel GPUs as a platform. Level Zero is asked how many there are; torch is imported only once it is chosen."""

import ctypes
from typing import Any

from core.accelerator import AcceleratorPlatform
from core.contracts.platform import Device

_LIBRARY = "libze_loader.so.1"
_VENDOR = 0x8086
_DISPLAY = 0x03  # PCI base class
_GPU_ONLY = 1  # ze_init_flag_t, ze_api.h
_DRIVER = "load i915 or xe, or pass /dev/dri into the container"


class IntelPlatform(AcceleratorPlatform):
    """GPUs that Level Zero offers; torch calls them xpu. Attention and kernels are the reference's.

    Arc A-series GPUs have no float64, in which the reference draws from a distribution: they answer greedily
    or not at all.
    """

    contract = (2, 0)
    name = "intel"
    device_type = "xpu"
    summary = "Intel GPUs (kernels: the reference's, through torch)"
    priority = 40

    _noun = "Intel GPU"
    _build = "xpu"
    _install = "pip install torch --index-url https://download.pytorch.org/whl/xpu"

    def _dtypes(self, device: Device) -> tuple[str, ...]:
        """Source: PyTorch, "Getting Started on Intel GPU": eager mode in these data types."""
        return ("bfloat16", "float16", "float32")

    def _found(self) -> list[str] | str:
        cards = [card for card in self._host.cards(_VENDOR) if card.class_code >> 16 == _DISPLAY]
        if not cards:
            return self._undriven(cards, f"no display device of PCI vendor {_VENDOR:04x}", _DRIVER)
        nodes = self._host.files("dev/dri/renderD*")
        if barred := self._barred(cards, nodes, "no /dev/dri/renderD*", _DRIVER):
            return barred
        there, loader = f"found {self._noun} ({cards[0]}), but", self._host.library(_LIBRARY)
        if loader is None:
            return f"{there} {_LIBRARY} was not found: install Intel's compute runtime (libze1, libze-intel-gpu1)"
        count = _count(loader)
        if count == 0:
            return f"{there} Level Zero offers none: install libze-intel-gpu1, or see ZE_AFFINITY_MASK"
        # Level Zero and the bus may order them differently: what a single one is called is certain.
        return [f"Intel GPU ({cards[0]})"] if count == len(cards) == 1 else ["Intel GPU"] * count


def _count(loader: Any) -> int:
    """GPUs that Level Zero offers; 0 when it refuses to start."""
    if loader.zeInit(ctypes.c_uint32(_GPU_ONLY)) != 0:
        return 0
    number = ctypes.c_uint32(0)
    loader.zeDriverGet(ctypes.pointer(number), None)
    drivers, total = (ctypes.c_void_p * number.value)(), 0
    loader.zeDriverGet(ctypes.pointer(number), drivers)
    for driver in drivers:
        found = ctypes.c_uint32(0)
        if loader.zeDeviceGet(ctypes.c_void_p(driver), ctypes.pointer(found), None) == 0:
            total += found.value
    return total
