"""Collectives over gloo, through host memory: correct on any device, fast on none.

The process group is an object of its own here; torch's process-wide default group is left alone.
"""

import re
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from core.contracts.communication import Communication, Group
from core.errors import ConfigError, PlatformError, UnsupportedShape

_MEET_TIMEOUT = timedelta(seconds=60)
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a rank may wait long for the next step


def connect(group: Group) -> Communication:
    """This rank's end of the group. Returns once every rank has called it; a group of one needs no meeting.

    It is told no device: tensors go through the host's memory, and results to the device that the tensor came from.

    Raises ConfigError for an impossible group, PlatformError when the ranks do not meet.
    """
    if not 0 <= group.rank < group.size:
        raise ConfigError(
            f"rank {group.rank} is outside a group of {group.size}; ranks count from 0", setting="rank"
        )
    return AloneCommunication(group) if group.size == 1 else GlooCommunication(group)


class AloneCommunication(Communication):
    """A group of one: every collective is the identity."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        if source != 0:
            raise self._nobody(source)
        return tensor

    def all_to_all(self, tensor: Tensor) -> Tensor:
        return tensor

    def send(self, tensor: Tensor, destination: int) -> None:
        raise self._nobody(destination)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        raise self._nobody(source)

    def barrier(self) -> None:
        return

    def close(self) -> None:
        return

    def _nobody(self, rank: int) -> PlatformError:
        return PlatformError(f"there is no rank {rank} to talk to; this group has rank 0 alone")


class GlooCommunication(Communication):
    """Several processes, meeting at `group.address`."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._gloo: Any = _meet(group)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        host = _host(tensor)
        self._gloo.allreduce([host]).wait()
        return host.to(tensor.device)

    def all_gather(self, tensor: Tensor) -> Tensor:
        host = _host(tensor)
        gathered = [torch.empty_like(host) for _ in range(self.group.size)]
        self._gloo.allgather([gathered], [host]).wait()
        return torch.cat(gathered).to(tensor.device)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        self._check_divisible(tensor)
        return self.all_reduce(tensor.clone()).chunk(self.group.size)[self.group.rank].clone()

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        host = _host(tensor).clone()
        self._gloo.broadcast(host, source).wait()
        return host.to(tensor.device)

    def all_to_all(self, tensor: Tensor) -> Tensor:
        self._check_divisible(tensor)
        host = _host(tensor)
        received = torch.empty_like(host)
        self._gloo.alltoall_base(received, host, [], []).wait()
        return received.to(tensor.device)

    def send(self, tensor: Tensor, destination: int) -> None:
        self._gloo.send([_host(tensor)], destination, 0).wait()

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        host = _host(tensor)
        self._gloo.recv([host], source, 0).wait()
        return host.to(tensor.device)

    def barrier(self) -> None:
        self._gloo.barrier().wait()

    def close(self) -> None:
        self._gloo = None

    def _check_divisible(self, tensor: Tensor) -> None:
        if tensor.dim() == 0 or tensor.shape[0] % self.group.size:
            raise UnsupportedShape(
                f"a tensor of shape {list(tensor.shape)} has no {self.group.size} equal slices, one a rank; "
                f"its first axis must be a multiple of {self.group.size}"
            )


def _host(tensor: Tensor) -> Tensor:
    return tensor.to("cpu").contiguous()


def _meet(group: Group) -> Any:
    """The connected gloo group; torch declares no types for its collectives."""
    from torch.distributed import ProcessGroupGloo, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    match = re.fullmatch(r"tcp://\[?([^\]/]+)\]?:(\d{1,5})", group.address)
    if match is None:
        raise ConfigError(
            f"the group's address is {group.address!r}; expected tcp://HOST:PORT, such as tcp://127.0.0.1:29500",
            setting="address",
        )
    host, port = match[1], int(match[2])
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._timeout = _COLLECTIVE_TIMEOUT
    # Ranks that meet at the loopback address listen there only.
    loopback = host == "localhost" or host == "::1" or host.startswith("127.")
    options._devices = [gloo.create_device(hostname=host) if loopback else gloo.create_default_device()]
    try:
        store = TCPStore(host, port, group.size, group.rank == 0, timeout=_MEET_TIMEOUT)
        return gloo(store, group.rank, group.size, options)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise PlatformError(
            f"rank {group.rank} of {group.size} did not meet the others at {group.address}: {reason}; "
            "check that every rank was started and that the port is free"
        ) from error
