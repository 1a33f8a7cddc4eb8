"""The CPU as a platform. Imports torch only once it is chosen."""

import importlib.util
import os
import platform as host
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.contracts.platform import Capabilities, Defaults, Device, Platform, Probe

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.execution import Execution
    from core.contracts.kernels import Implementation
    from core.contracts.model import ModelDescription
    from core.native.toolchain import NativeBuild


class CpuPlatform(Platform):
    """Any processor that torch runs on. The last resort of "auto", behind every accelerator."""

    contract = (1, 0)
    name = "cpu"
    device_type = "cpu"
    summary = "this machine's processor, through torch"
    priority = 0

    def probe(self) -> Probe:
        if importlib.util.find_spec("torch") is None:
            return Probe(available=False, reason="torch is not installed")
        cores = len(os.sched_getaffinity(0))
        name = f"{host.machine()}, {cores} core{'s' if cores != 1 else ''}"
        return Probe(available=True, reason=name, devices=(Device(name=name, torch_device="cpu"),))

    def capabilities(self, device: Device) -> Capabilities:
        from platforms.cpu.kernels import weight_formats

        return Capabilities(
            dtypes=("bfloat16", "float32", "float16"),
            block_sizes=(16, 8, 32, 64, 128),
            weight_formats=weight_formats(),
        )

    def defaults(self, model: "ModelDescription", device: Device) -> Defaults:
        import psutil

        available = psutil.virtual_memory().available
        return Defaults(kv_cache_memory=min(4 * 2**30, available // 3), max_num_batched_tokens=2048)

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention":
        from core.native.attention import NativeAttention, unsupported
        from core.native.library import native_library
        from platforms.cpu.attention import TorchAttention
        from platforms.cpu.isa.levels import chosen_build

        library = native_library(chosen_build())
        if isinstance(library, str) or unsupported(spec):
            return TorchAttention(spec)
        return NativeAttention(spec, library)

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        from platforms.cpu.kernels import implementations

        return implementations()

    def execution(self, device: Device) -> "Execution":
        from platforms.cpu.execution import PinnedExecution

        return PinnedExecution()

    def native_builds(self) -> "Mapping[str, NativeBuild]":
        from platforms.cpu.isa.levels import builds

        return builds()
