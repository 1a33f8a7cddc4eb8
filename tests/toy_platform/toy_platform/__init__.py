"""A platform in two pages. It imports torch only once it is chosen."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core import hookimpl
from core.contracts.platform import Capabilities, Device, Platform, Probe

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.kernels import Implementation


class ToyPlatform(Platform):
    """A device named toy that torch calls cpu."""

    contract = (2, 0)
    name = "toy"
    device_type = "cpu"
    summary = "an example for people who write platforms"
    priority = -20

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(Device(name="toy", torch_device="cpu"),))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=("float32", "bfloat16"), block_sizes=(16, 32))

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention":
        from toy_platform.attention import ToyAttention

        return ToyAttention(spec)

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        from toy_platform.kernels import implementations

        return implementations()


@hookimpl
def core_platforms() -> list[type[Platform]]:
    return [ToyPlatform]
