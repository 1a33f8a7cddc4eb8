"""A platform that leaves everything to the reference, or to an attention that a test brings."""

from collections.abc import Callable
from typing import Any

from core.contracts.attention import Attention, AttentionSpec
from core.contracts.platform import FEATURES, Capabilities, Device, Platform, Probe

CPU = Device(name="bare", torch_device="cpu")


class Bare(Platform):
    """Leaves everything to the reference, unless it is given an attention; does all that attention may be asked for."""

    contract = (2, 0)
    name = "bare"
    device_type = "cpu"

    def __init__(
        self, attention: Callable[[AttentionSpec], Attention] | None = None, **capabilities: Any
    ) -> None:
        everything = {"dtypes": ("float32",), "block_sizes": (8,), "features": frozenset(FEATURES)}
        self._attention, self._capabilities = attention, Capabilities(**(everything | capabilities))

    def probe(self) -> Probe:
        return Probe(available=True, reason="", devices=(CPU,))

    def capabilities(self, device: Device) -> Capabilities:
        return self._capabilities

    def attention(self, spec: AttentionSpec, device: Device) -> Attention | None:
        return self._attention(spec) if self._attention else None
