"""What platforms have in common whose hardware is looked for on the machine: a card, its driver, and what it takes.

The way from the hardware to torch is long, and a probe says which part of it is missing, and the next step: the card,
its driver, leave to open the device, a torch that was built for it, or the package that teaches torch about it. Nothing
heavy is imported before the platform is chosen; what can only be known then is told by `AcceleratorExecution.set_up`.
Names no vendor.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from core.contracts.platform import FEATURES, Capabilities, Device, Platform, Probe
from core.probing import Host, PciDevice

if TYPE_CHECKING:
    from core.contracts.execution import Execution
    from core.contracts.memory import Memory


class HardwarePlatform(Platform):
    """A platform that is there when its hardware is, and whatever that takes.

    _noun  what the hardware is called: "Wonder GPU"
    """

    _noun: ClassVar[str]

    def __init__(self, host: Host | None = None) -> None:
        self._host = Host() if host is None else host

    @abstractmethod
    def _found(self) -> list[str] | str:
        """The names of the devices that the driver offers, in torch's order, or why there are none."""

    @abstractmethod
    def _missing(self) -> str:
        """What devices that were found lack to be used, and the next step; "" for nothing."""

    def probe(self) -> Probe:
        found = self._found()
        if isinstance(found, str):
            return Probe(available=False, reason=found)
        if missing := self._missing():
            return Probe(available=False, reason=f"found {listed(found)}, but {missing}")
        devices = tuple(
            Device(name=name, torch_device=f"{self.device_type}:{i}", index=i) for i, name in enumerate(found)
        )
        return Probe(available=True, reason=listed(found), devices=devices)

    def _undriven(self, cards: Sequence[PciDevice], lacking: str, step: str) -> str:
        """No driver answers, for these cards or for none: what of it is lacking, and the next step."""
        if cards:
            return f"found {self._noun} ({cards[0]}), but no driver for it ({lacking}): {step}"
        return f"no {self._noun} was found ({lacking}); if there is one, {step}"

    def _barred(self, cards: Sequence[PciDevice], nodes: Sequence[Path], lacking: str, step: str) -> str:
        """Why none of a driver's device files can be used: there are none, or all are closed; "" when one can."""
        if not nodes:
            return self._undriven(cards, lacking, step)
        closed = self._host.closed(nodes)
        return f"found {self._noun}, but {closed}" if closed else ""


class AcceleratorPlatform(HardwarePlatform):
    """A torch device with memory of its own. The reference serves attention and kernels that a subclass leaves out.

    _build    name under which torch's version.py says that it was built for this hardware; "" when torch takes a
              package for it, whoever built it
    _package  top-level package that the device needs besides torch; "" for none
    _module   what to import of that package, so that torch knows the device
    _install  what a user does who lacks the build or the package
    """

    _build: ClassVar[str] = ""
    _package: ClassVar[str] = ""
    _module: ClassVar[str] = ""
    _install: ClassVar[str] = ""

    @abstractmethod
    def _dtypes(self, device: Device) -> tuple[str, ...]:
        """The model dtypes that a device computes in, preferred first."""

    def capabilities(self, device: Device) -> Capabilities:
        """The device's dtypes, and whatever the reference's attention does."""
        return Capabilities(dtypes=self._dtypes(device), features=frozenset(FEATURES))

    def memory(self, device: Device) -> "Memory | None":
        from core.reference.accelerator import AcceleratorMemory

        return AcceleratorMemory(device.torch_device, self._module, self._install)

    def execution(self, device: Device) -> "Execution | None":
        from core.reference.accelerator import AcceleratorExecution

        return AcceleratorExecution(device.torch_device, self._module, self._install)

    def _missing(self) -> str:
        """As far as it shows without importing anything."""
        if self._host.packages("torch") is None:
            return f"torch is not installed: {self._install}"
        if self._build and self._host.torch_built_for(self._build) == "":
            return f"the torch that is installed was built without {self._build}: {self._install}"
        if self._package and self._host.packages(self._package) is None:
            return f"the package {self._package} is not installed: {self._install}"
        return ""


class UnfinishedPlatform(HardwarePlatform):
    """Hardware that is found and not used, because the runner that it needs is not written. Never available.

    _nodes     patterns of the device files that it is reached by; one will do
    _packages  what a runner will import
    """

    _nodes: ClassVar[tuple[str, ...]]
    _packages: ClassVar[tuple[str, ...]]

    def _absent(self, lacking: str) -> str:
        return f"no {self._noun} was found ({lacking}), and a runner for it is not written yet"

    def _missing(self) -> str:
        needed = [package for package in self._packages if self._host.packages(package) is None]
        if not any(self._host.files(pattern) for pattern in self._nodes):
            needed.append(" or ".join(f"/{pattern.replace('[0-9]', '')}" for pattern in self._nodes))
        also = f"; it will need {', '.join(needed)}" if needed else ""
        return f"a runner for it is not written yet{also}"


def listed(names: Sequence[str]) -> str:
    """Devices in a few words: "2 x Wonder 9000, 1 x Wonder 7"; a single one by its name alone."""
    if len(names) == 1:
        return names[0]
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).items())
