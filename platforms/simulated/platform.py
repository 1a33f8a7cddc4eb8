"""What the simulation claims to be. Options are read anew for every model that is loaded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.contracts.platform import (
    FEATURES,
    Capabilities,
    Defaults,
    Device,
    Platform,
    Probe,
    SchedulingLimits,
)
from core.errors import ConfigError
from platforms.simulated.options import Options

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.execution import Execution
    from core.contracts.kernels import Implementation
    from core.contracts.memory import Memory
    from core.contracts.model import ModelDescription

_KV_CACHE_MEMORY = 256 * 2**20


class SimulatedPlatform(Platform):
    """Runs on any machine, but only when it is named: its priority is below 0."""

    contract = (2, 0)
    name = "simulated"
    device_type = "cpu"
    summary = "a strict accelerator in software, for tests of the engine"
    priority = -10

    def probe(self) -> Probe:
        try:
            Options.from_environment()
        except ConfigError as error:
            return Probe(available=False, reason=str(error))
        device = Device(name="simulated accelerator", torch_device="cpu")
        return Probe(available=True, reason="software, always there", devices=(device,))

    def capabilities(self, device: Device) -> Capabilities:
        options = Options.from_environment()
        return Capabilities(
            dtypes=("float32", "bfloat16", "float16"),
            block_sizes=(24, 12) if options.block_size is None else (options.block_size,),
            features=frozenset(FEATURES),
            kv_cache_dtypes=frozenset({"int8"}),
            alignment_bytes=options.alignment,
            scheduling=SchedulingLimits(
                separate_steps=options.separate_steps,
                token_multiple=options.token_multiple,
                max_num_seqs=options.max_num_seqs,
            ),
        )

    def defaults(self, model: "ModelDescription", device: Device) -> Defaults:
        return Defaults(kv_cache_memory=min(_KV_CACHE_MEMORY, Options.from_environment().memory // 2))

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention":
        from platforms.simulated.attention import StrictAttention

        return StrictAttention(spec, device, self.capabilities(device).scheduling)

    def memory(self, device: Device) -> "Memory":
        from platforms.simulated.memory import StrictMemory

        return StrictMemory(device, Options.from_environment())

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        from platforms.simulated.kernels import implementations

        return implementations(Options.from_environment().fail_kernel)

    def execution(self, device: Device) -> "Execution":
        from platforms.simulated.execution import SimulatedExecution

        return SimulatedExecution(Options.from_environment())
