"""NVIDIA GPUs as a platform. The driver itself is asked what is there; torch is imported only once it is chosen."""

import ctypes
from typing import Any

from core.accelerator import AcceleratorPlatform
from core.contracts.platform import Device

_LIBRARY = "libcuda.so.1"
_VENDOR = 0x10DE
_CARDS = (0x0300, 0x0302)  # PCI classes of a GPU with and without a display
# Source: cuda.h, CUresult and CUdevice_attribute.
_NO_DEVICE = 100
_COMPUTE_CAPABILITY_MAJOR = 75


class CudaPlatform(AcceleratorPlatform):
    """GPUs that a driver answers for. Attention and kernels are the reference's."""

    contract = (2, 0)
    name = "cuda"
    device_type = "cuda"
    summary = "NVIDIA GPUs (kernels: the reference's, through torch)"
    priority = 50

    _noun = "NVIDIA GPU"
    _build = "cuda"
    _install = "install torch for CUDA, see https://pytorch.org/get-started/locally"

    def _dtypes(self, device: Device) -> tuple[str, ...]:
        """bfloat16 is arithmetic from compute capability 8.0 on, and emulated before.

        Source: CUDA C++ Programming Guide, arithmetic instructions by compute capability.
        """
        driver = self._host.library(_LIBRARY)
        recent = driver is not None and driver.cuInit(0) == 0 and _major(driver, device.index) >= 8
        return ("bfloat16", "float16", "float32") if recent else ("float16", "float32")

    def _found(self) -> list[str] | str:
        driver = self._host.library(_LIBRARY)
        if driver is None:
            cards = [card for card in self._host.cards(_VENDOR) if card.class_code >> 8 in _CARDS]
            step = "install NVIDIA's driver, or start the container with --gpus all"
            return self._undriven(cards, f"{_LIBRARY} not found", step)
        count, answer = ctypes.c_int(0), driver.cuInit(0)
        if answer == 0:
            answer = driver.cuDeviceGetCount(ctypes.pointer(count))
        if answer == _NO_DEVICE or (answer == 0 and count.value == 0):
            return "the NVIDIA driver offers no GPU; CUDA_VISIBLE_DEVICES or the container may hide it"
        if answer != 0:
            return f"the NVIDIA driver answered with error {answer} (CUresult in cuda.h); nvidia-smi may say more"
        return [_name(driver, ordinal) for ordinal in range(count.value)]

    def _missing(self) -> str:
        return super()._missing() or self._outdated()

    def _outdated(self) -> str:
        """Why the driver is too old for torch; "" when it is not, or nobody knows.

        Source: CUDA Compatibility: a driver serves every minor version of its own major version and of those before.
        """
        driver, version = self._host.library(_LIBRARY), ctypes.c_int(0)
        built = self._host.torch_built_for(self._build) or ""
        major = built.partition(".")[0]
        if driver is None or not major.isdigit() or driver.cuDriverGetVersion(ctypes.pointer(version)) != 0:
            return ""
        if version.value // 1000 >= int(major):
            return ""
        known = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"its driver knows CUDA up to {known}, and torch was built for {built}: update the driver"


def _name(driver: Any, ordinal: int) -> str:
    handle, name = ctypes.c_int(ordinal), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.pointer(handle), ordinal)
    driver.cuDeviceGetName(name, len(name), handle)
    return name.value.decode(errors="replace") or "NVIDIA GPU"


def _major(driver: Any, ordinal: int) -> int:
    handle, major = ctypes.c_int(ordinal), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.pointer(handle), ordinal)
    driver.cuDeviceGetAttribute(ctypes.pointer(major), _COMPUTE_CAPABILITY_MAJOR, handle)
    return major.value
