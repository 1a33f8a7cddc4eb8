"""A platform that keeps the core's runner but for one stage: it prepares every step at one of a few static sizes."""

from core import hookimpl
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.contracts.runner import Batch, Runner, RunnerContext
from core.execution.inputs import Prepared, prepare
from core.execution.runner import ModelRunner

SIZES = (8, 64, 256, 2048)


class StaticRunner(ModelRunner):
    """As hardware that compiles for shapes would ask."""

    def prepare(self, batch: Batch) -> Prepared:
        size = next(size for size in SIZES if batch.num_tokens <= size)
        self.context.ledger.record("step size", self.context.platform.name, str(size))
        block_size = self.context.settings.block_size
        return prepare(batch, block_size=block_size, token_multiple=size, device=self.device)


class StaticPlatform(Platform):
    contract, name, device_type, priority = (2, 0), "static", "cpu", -20

    def probe(self) -> Probe:
        return Probe(
            available=True, reason="always there", devices=(Device(name="static", torch_device="cpu"),)
        )

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(dtypes=("float32",), block_sizes=(16, 4), features=frozenset())

    def runner(self, context: RunnerContext) -> Runner:
        return StaticRunner(context)


@hookimpl
def core_platforms() -> list[type[Platform]]:
    return [StaticPlatform]
