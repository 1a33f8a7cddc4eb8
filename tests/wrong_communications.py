"""Platforms whose communication is wrong, each class in ways that do not hide one another.

The processes of ranks import this module by its name: the import path of a rank is its parent's.
"""

import os
import threading
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.contracts.communication import Communication, Group
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.errors import UnsupportedShape
from core.reference.communication import GlooCommunication, connect

DEVICE = Device(name="it", torch_device="cpu")


class SoundPlatform(Platform):
    """The reference's communication, unless a subclass has another kind."""

    contract = (2, 0)
    name = "sound"
    device_type = "cpu"
    priority = -20
    _kind: ClassVar[type[GlooCommunication]] = GlooCommunication

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=("float32",))

    def communication(self, group: Group, device: Device) -> Communication | None:
        return connect(group) if group.size == 1 else self._kind(group)


class Confused(GlooCommunication):
    """Never hangs, and is wrong in five ways."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(super().all_gather(tensor).chunk(self.group.size)[::-1])

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        return super().broadcast(tensor, 0)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        try:
            return super().reduce_scatter(tensor)
        except UnsupportedShape as error:
            raise RuntimeError("bad shape") from error

    def all_to_all(self, tensor: Tensor) -> Tensor:
        received = super().all_to_all(tensor)
        tensor.zero_()
        return received

    def barrier(self) -> None:
        return


class ConfusedPlatform(SoundPlatform):
    name = "confused"
    _kind = Confused


class Stuck(GlooCommunication):
    """Gives every sum in the same memory, and one rank of it waits for ever."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._sums: dict[Any, Tensor] = {}

    def all_reduce(self, tensor: Tensor) -> Tensor:
        total = super().all_reduce(tensor)
        return self._sums.setdefault(total.shape, total.clone()).copy_(total)

    def barrier(self) -> None:
        if self.group.rank == 1:
            threading.Event().wait()
        super().barrier()


class StuckPlatform(SoundPlatform):
    name = "stuck"
    _kind = Stuck


class Dying(GlooCommunication):
    """One rank of it ends its process."""

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        if self.group.rank == 1:
            print("no such instruction", flush=True)
            os._exit(3)
        return super().reduce_scatter(tensor)


class DyingPlatform(SoundPlatform):
    name = "dying"
    _kind = Dying


class SolitaryPlatform(SoundPlatform):
    """Says that it has no room for a second rank."""

    name = "solitary"

    def communication(self, group: Group, device: Device) -> Communication | None:
        if group.size > 1:
            raise UnsupportedShape("one device holds one rank")
        return connect(group)
