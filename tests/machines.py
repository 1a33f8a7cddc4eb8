"""Machines that are not there: folders of device files, drivers of a few lines, and packages that are only named."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.probing import Host


def torch_built(cuda: str | None = None, hip: str | None = None, xpu: str | None = None) -> str:
    """What torch's version.py says of the hardware that it was built for."""
    built = {"cuda": cuda, "hip": hip, "xpu": xpu}
    lines = [f"{name}: Optional[str] = {version!r}\n" for name, version in built.items()]
    return "".join(("__version__ = '2.13.0'\n", *lines))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine has.

    files   path -> contents
    closed  files that this user may not open
    cards   vendor, device and class on the PCI bus
    torch   its version.py; None: it is not installed
    """

    files: Mapping[str, str] = field(default_factory=dict[str, str])
    closed: Sequence[str] = ()
    cards: Sequence[tuple[int, int, int]] = ()
    libraries: Mapping[str, Any] = field(default_factory=dict[str, Any])
    torch: str | None = torch_built()
    packages: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def host(self, root: Path) -> Host:
        """The machine, its files below `root`."""
        files = dict(self.files)
        for i, card in enumerate(self.cards):
            folder = f"sys/bus/pci/devices/0000:{i:02x}:00.0"
            for name, number, digits in zip(("vendor", "device", "class"), card, (4, 4, 6), strict=True):
                files[f"{folder}/{name}"] = f"0x{number:0{digits}x}\n"
        packages = {name: root / "site" / name for name in self.packages}
        if self.torch is not None:
            packages["torch"] = root / "site" / "torch"
            files["site/torch/version.py"] = self.torch
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return Host(
            root=root,
            environment=self.environment,
            opens=lambda path: str(path.relative_to(root)) not in self.closed,
            libraries=self.libraries.get,
            packages=packages.get,
        )


class NvidiaDriver:
    """libcuda.so.1, as far as a probe asks it.

    answer  of cuInit
    major   of every GPU's compute capability
    known   the CUDA version that it serves, 1000 * major + 10 * minor
    """

    def __init__(self, *names: str, answer: int = 0, major: int = 9, known: int = 13020) -> None:
        self.names, self.answer, self.major, self.known = names, answer, major, known

    def cuInit(self, flags: int) -> int:
        return self.answer

    def cuDriverGetVersion(self, version: Any) -> int:
        version[0] = self.known
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count[0] = len(self.names)
        return 0

    def cuDeviceGet(self, handle: Any, ordinal: int) -> int:
        handle[0] = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        name.value = self.names[handle.value].encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        value[0] = self.major if attribute == 75 else -1
        return 0


class LevelZero:
    """libze_loader.so.1 over one driver of so many GPUs; `starts` False: it refuses."""

    def __init__(self, count: int, starts: bool = True) -> None:
        self.count, self.starts = count, starts

    def zeInit(self, flags: ctypes.c_uint32) -> int:
        return 0 if self.starts and flags.value == 1 else 0x78000001

    def zeDriverGet(self, number: Any, drivers: Any) -> int:
        number[0] = 1
        if drivers is not None:
            drivers[0] = 0x5EED
        return 0

    def zeDeviceGet(self, driver: ctypes.c_void_p, number: Any, devices: Any) -> int:
        number[0] = self.count if driver.value == 0x5EED else 0
        return 0


def kfd(*versions: int) -> dict[str, str]:
    """The nodes of AMD's compute driver: a processor, then a GPU of each version."""
    folder, files = "sys/class/kfd/kfd/topology/nodes", {"dev/kfd": ""}
    for i, version in enumerate((0, *versions)):
        files[f"{folder}/{i}/properties"] = f"simd_count {4 * bool(version)}\ngfx_target_version {version}\n"
    return files


def accel(vendor: int, *devices: int) -> dict[str, str]:
    """Device files of the kernel's accel drivers, for cards of one vendor."""
    files: dict[str, str] = {}
    for i, device in enumerate(devices):
        files |= {
            f"dev/accel/accel{i}": "",
            f"sys/class/accel/accel{i}/device/vendor": f"{vendor:#06x}\n",
            f"sys/class/accel/accel{i}/device/device": f"{device:#06x}\n",
        }
    return files
