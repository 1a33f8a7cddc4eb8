"""Platforms that take weights as they are stored and have no kernels of their own: the reference unpacks them."""

from core import hookimpl
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.contracts.quantization import FORMATS


class EveryFormatPlatform(Platform):
    contract, name, device_type, priority = (2, 0), "every-format", "cpu", -20
    formats = frozenset(FORMATS)

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(Device(name="it", torch_device="cpu"),))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=("float32", "bfloat16"), weight_formats=self.formats)


class Int8Platform(EveryFormatPlatform):
    name = "only-int8"
    formats = frozenset({"int8"})


@hookimpl
def core_platforms() -> list[type[Platform]]:
    return [EveryFormatPlatform, Int8Platform]
