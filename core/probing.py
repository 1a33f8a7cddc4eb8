"""The machine as a probe sees it: device files, driver libraries, Python packages, environment variables.

A probe that asks a `Host` and nothing else can be shown any machine, by a test or by whoever looks for a fault.
Nothing here imports what it finds, starts a program, or raises: what cannot be read is not there. Knows no vendor.
"""

import ctypes
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class PciDevice:
    """A card on the bus. `class_code` has 24 bits, the kind of device in the upper 8: 0x03 is a display's."""

    vendor: int
    device: int
    class_code: int

    def __str__(self) -> str:
        return f"PCI {self.vendor:04x}:{self.device:04x}"


def load_library(name: str) -> Any | None:
    """A shared library by the name that the linker knows, or None."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def find_package(name: str) -> Path | None:
    """The folder of an installed top-level package, which is not imported; None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return folders[0] if folders else Path(spec.origin or name).parent


def may_open(path: Path) -> bool:
    """Whether this process may read and write a file."""
    return os.access(path, os.R_OK | os.W_OK)


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine; by default this one.

    root         where its files begin
    environment  its environment variables
    opens        whether a file may be read and written
    libraries    name -> the library, loaded, or None
    packages     name of a top-level package -> its folder, or None
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    opens: Callable[[Path], bool] = may_open
    libraries: Callable[[str], Any | None] = load_library
    packages: Callable[[str], Path | None] = find_package

    def files(self, pattern: str) -> list[Path]:
        """What is there by a pattern such as "dev/dri/renderD*", in the order of the numbers in it."""
        try:
            return sorted(self.root.glob(pattern), key=_numbers)
        except OSError:
            return []

    def closed(self, nodes: Sequence[Path]) -> str:
        """Why none of these device files can be used, and the next step; "" when one can."""
        if any(self.opens(node) for node in nodes):
            return ""
        first = f"/{nodes[0].relative_to(self.root)}"
        return f"this user may not open {first}: join the group that owns it (ls -l {first})"

    def text(self, path: str | Path) -> str:
        """What a file says, given from the root on; "" where there is none."""
        with suppress(OSError, ValueError):
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        return ""

    def library(self, *names: str) -> Any | None:
        """The first of these libraries that loads."""
        for name in names:
            found = self.libraries(name)
            if found is not None:
                return found
        return None

    def cards(self, vendor: int) -> list[PciDevice]:
        """Everything of one vendor on the PCI bus, whether a driver serves it or not."""
        found: list[PciDevice] = []
        for folder in self.files("sys/bus/pci/devices/*"):
            if self._number(folder / "vendor") == vendor:
                device, class_code = self._number(folder / "device"), self._number(folder / "class")
                found.append(PciDevice(vendor=vendor, device=device, class_code=class_code))
        return found

    def visible(self, found: Sequence[_Found], *variables: str) -> list[_Found]:
        """What environment variables such as "0,2" leave of some devices, one variable after the other.

        As drivers have it, a list ends before the first number that is no device's. A value that is no list of
        numbers is theirs to understand, and changes nothing here.
        """
        left = list(found)
        for variable in variables:
            value = self.environment.get(variable)
            if value is not None and re.fullmatch(r"\s*(-?\d+\s*(,\s*-?\d+\s*)*)?", value):
                chosen = map(int, re.findall(r"-?\d+", value))
                left = [left[number] for number in takewhile(range(len(left)).__contains__, chosen)]
        return left

    def torch_built_for(self, name: str) -> str | None:
        """What the installed torch says of itself under this name in its version.py, which is read, not run.

        "" when it was built without it, None when it does not say.
        """
        folder = self.packages("torch")
        stated = "" if folder is None else self.text(folder / "version.py")
        found = re.search(rf"^{name}\b[^=\n]*=[ \t]*(None|(['\"])(.*)\2)", stated, re.MULTILINE)
        return None if found is None else found[3] or ""

    def _number(self, path: Path) -> int:
        with suppress(ValueError):
            return int(self.text(path), 16)
        return -1


def _numbers(path: Path) -> list[tuple[int, str]]:
    return [(int(digits or 0), letters) for letters, digits in re.findall(r"(\D*)(\d*)", str(path))]
