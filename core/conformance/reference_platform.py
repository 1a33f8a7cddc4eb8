"""A platform that leaves everything to the reference: what whole answers are compared with.

It is not found as plugins are, and never chosen: the kit makes one beside the platform that it tries, with the same
block sizes and the same limits on a step, so that both are asked for the very same steps.
"""

from core.contracts.platform import FEATURES, Capabilities, Device, Platform, Probe
from core.contracts.versions import VERSIONS

DEVICE = Device(name="reference", torch_device="cpu")


class ReferencePlatform(Platform):
    """The host, through torch.

    like  a manifest whose block sizes, alignment and scheduling limits it takes over; None: the contract's own
    """

    contract = VERSIONS["platform"]
    name = "reference"
    device_type = "cpu"
    summary = "the core's reference implementations, on the host"
    priority = -100

    def __init__(self, like: Capabilities | None = None) -> None:
        self._like = like or Capabilities()

    def probe(self) -> Probe:
        return Probe(available=True, reason="software, always there", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            dtypes=("float32", "bfloat16", "float16"),
            block_sizes=self._like.block_sizes,
            features=frozenset(FEATURES),
            kv_cache_dtypes=frozenset({"int8"}),
            alignment_bytes=self._like.alignment_bytes,
            scheduling=self._like.scheduling,
        )
