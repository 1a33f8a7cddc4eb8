"""Memory and execution of any accelerator that torch drives, through torch's own module for it.

`torch.get_device_module` gives that module by the device's type, so that no device is named here. Of it are asked
`is_available`, `device_count`, `set_device`, `synchronize` and `mem_get_info`, and `empty_cache` where there is one.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from core.contracts.execution import Execution
from core.contracts.memory import MemoryStatistics
from core.errors import PlatformError
from core.reference.memory import HostMemory


def opened(torch_device: str, module: str = "", install: str = "") -> Any:
    """torch's module for a device, once torch can reach that very device.

    module   what to import first, so that torch knows the device at all; "" for nothing
    install  what to do when torch cannot reach it

    Raises PlatformError with the reason and the next step.
    """
    try:
        if module:
            import_module(module)
        found = _module_of(torch_device)
    except Exception as error:  # a vendor's package may raise anything when it is imported
        reason = " ".join(str(error).split())[:200]
        problem = f"{module} does not work with it ({reason})" if module else reason
        raise _refusal(torch_device, problem, install) from error
    if not found.is_available():
        raise _refusal(torch_device, "it finds no such device that works", install)
    count: int = found.device_count()
    if _index_of(torch_device) >= count:
        raise _refusal(torch_device, f"it sees {count} of them", "check which devices this process may use")
    return found


class AcceleratorExecution(Execution):
    """Eager execution on a device that may still be busy when a call returns."""

    def __init__(self, torch_device: str, module: str = "", install: str = "") -> None:
        self._device, self._module, self._install = torch_device, module, install

    def set_up(self) -> None:
        opened(self._device, self._module, self._install).set_device(_index_of(self._device))

    def synchronize(self) -> None:
        _module_of(self._device).synchronize()


class AcceleratorMemory(HostMemory):
    """The device's own memory: its figures are the driver's, and tensors come from torch's allocator.

    What that keeps for reuse, of an engine that was closed, goes back to the driver before anything is measured.
    """

    def __init__(self, torch_device: str, module: str = "", install: str = "") -> None:
        self._module = opened(torch_device, module, install)
        # A module whose allocator keeps nothing need not have it.
        self._empty_cache: Callable[[], object] = getattr(self._module, "empty_cache", lambda: None)
        super().__init__(torch_device)

    def statistics(self) -> MemoryStatistics:
        self._empty_cache()
        free, total = self._module.mem_get_info(_index_of(self._device))
        return MemoryStatistics(total=int(total), allocated=self._allocated, free=int(free))


def _module_of(torch_device: str) -> Any:
    untyped: Any = torch  # which declares no type for what it returns here
    return untyped.get_device_module(torch.device(torch_device))


def _index_of(torch_device: str) -> int:
    return torch.device(torch_device).index or 0


def _refusal(torch_device: str, problem: str, step: str) -> PlatformError:
    after = f"; {step}" if step else ""
    return PlatformError(f"torch {torch.__version__} cannot use {torch_device}: {problem}{after}")
