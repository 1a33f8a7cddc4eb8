"""A sound platform, and some that have one fault each, for the kit to find. Importable, because ranks import theirs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from core import hookimpl
from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, LayerCache
from core.contracts.communication import Communication, Group
from core.contracts.kernels import Implementation
from core.contracts.memory import Memory
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.reference.attention import ReferenceAttention
from core.reference.communication import GlooCommunication
from core.reference.linear import linear
from core.reference.memory import HostMemory
from core.reference.norm import rms_norm

DEVICE = Device(name="mutant", torch_device="cpu")


class Sound(Platform):
    """Everything from the reference."""

    contract = (2, 0)
    name = "sound"
    device_type = "cpu"
    priority = -50
    dtypes: tuple[str, ...] = ("float32",)

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=self.dtypes, block_sizes=(16,))


class Narrow(Sound):
    """Has bfloat16 alone."""

    name, dtypes = "narrow", ("bfloat16",)


class Both(Sound):
    name, dtypes = "both", ("float32", "bfloat16")


class Single(Sound):
    """Computes one sequence at a time."""

    name = "single"

    def capabilities(self, device: Device) -> Capabilities:
        found = super().capabilities(device)
        return replace(found, scheduling=replace(found.scheduling, max_num_seqs=1), features=frozenset())


class WrongKernels(Sound):
    """A projection that is off by a thousandth, and a norm of which one element is not a number."""

    name = "wrong-kernels"

    def kernels(self, device: Device) -> Mapping[str, Implementation]:
        return {
            "linear": Implementation(function=_slightly_off),
            "rms_norm": Implementation(function=_not_a_number),
        }


class Leaking(Sound):
    """Memory that it never gives back."""

    name = "leaking"

    def memory(self, device: Device) -> Memory:
        return _LeakingMemory(device.torch_device)


class CopiesNothing(Sound):
    """Forks are promised a copy of a block, and read what lay there before."""

    name = "copies-nothing"

    def memory(self, device: Device) -> Memory:
        return _ForgetfulMemory(device.torch_device)


class StaleWindow(Sound):
    """Reads blocks that a window has left behind, which are somebody else's by then."""

    name = "stale-window"

    def attention(self, spec: AttentionSpec, device: Device) -> Attention:
        return ReferenceAttention(replace(spec, sliding_window=None))


class StaleTables(Sound):
    """Reads through the first block table that it ever saw of a shape, as from a buffer that nobody refreshed."""

    name = "stale-tables"

    def attention(self, spec: AttentionSpec, device: Device) -> Attention:
        return _StaleTables(spec)


class OutOfOrder(Sound):
    """Gathers the ranks' slices backwards."""

    name = "out-of-order"

    def communication(self, group: Group, device: Device) -> Communication | None:
        return _Backwards(group) if group.size > 1 else None


class MisSigned(Sound):
    """Its attention is not told the device."""

    name = "mis-signed"

    def attention(self, spec: AttentionSpec) -> None:  # type: ignore[override]
        return None


@hookimpl
def core_platforms() -> list[type[Platform]]:
    return [MisSigned]


def _slightly_off(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    apply = linear(weight, bias)
    return lambda x: apply(x) * 1.001


def _not_a_number(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    result = rms_norm(x, weight, eps)
    result[..., -1:] = float("nan")
    return result


class _LeakingMemory(HostMemory):
    def __init__(self, torch_device: str) -> None:
        super().__init__(torch_device)
        self._kept: list[Tensor] = []

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        self._kept.append(super().allocate(shape, dtype))
        return self._kept[-1]


class _ForgetfulMemory(HostMemory):
    def allocate(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return super().allocate(shape, dtype).fill_(3)

    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        return


class _StaleTables(ReferenceAttention):
    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        self._seen: dict[tuple[int, ...], Tensor] = {}

    def plan(self, batch: AttentionBatch) -> Any:
        shape = tuple(batch.block_tables.shape)
        return super().plan(replace(batch, block_tables=self._seen.setdefault(shape, batch.block_tables)))


class _Backwards(GlooCommunication):
    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(super().all_gather(tensor).chunk(self.group.size)[::-1])
