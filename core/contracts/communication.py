"""Collectives among the ranks of a group. Semantics are those of MPI; reductions are sums."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks that talk to each other. `address` is where they meet: "tcp://127.0.0.1:29500"."""

    rank: int
    size: int
    address: str = ""


class Communication(ABC):
    """One rank's end of a group, on one device. Every rank calls the same collectives in the same order.

    Tensors are on the device that `Platform.communication` was told, and so are results. A tensor that is given
    stays as it is unless its method says otherwise. A result is the caller's: no later call changes it.
    """

    group: Group

    @abstractmethod
    def all_reduce(self, tensor: "Tensor") -> "Tensor":
        """The sum over all ranks, on all ranks. `tensor` may be overwritten."""

    @abstractmethod
    def all_gather(self, tensor: "Tensor") -> "Tensor":
        """[d0, ...] on each rank -> [size * d0, ...] on all, in rank order."""

    @abstractmethod
    def reduce_scatter(self, tensor: "Tensor") -> "Tensor":
        """[size * d0, ...] -> [d0, ...]: the sum over ranks, of which each keeps its own slice.

        Raises UnsupportedShape, on every rank, when the tensor has no `size` equal slices.
        """

    @abstractmethod
    def broadcast(self, tensor: "Tensor", source: int) -> "Tensor":
        """The tensor of rank `source`, on all ranks; elsewhere `tensor` gives shape and dtype."""

    @abstractmethod
    def all_to_all(self, tensor: "Tensor") -> "Tensor":
        """[size * d0, ...]: slice i goes to rank i; returns the slices received, in rank order.

        Raises UnsupportedShape, on every rank, when the tensor has no `size` equal slices.
        """

    @abstractmethod
    def send(self, tensor: "Tensor", destination: int) -> None:
        """Send to one rank, which calls `receive`. May wait until it does."""

    @abstractmethod
    def receive(self, tensor: "Tensor", source: int) -> "Tensor":
        """Receive from one rank; `tensor` gives shape and dtype and may be overwritten."""

    @abstractmethod
    def barrier(self) -> None:
        """Return once every rank has called it."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group. Nothing may be called afterwards."""
