"""The CPU as a platform. Imports torch only once it is chosen."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from core.contracts.platform import Capabilities, Device
from core.errors import UnsupportedShape
from core.native.platform import NativePlatform

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.kernels import Implementation
    from core.native.toolchain import NativeBuild


class CpuPlatform(NativePlatform):
    """Any processor that torch runs on. The last resort of "auto", behind every accelerator."""

    contract = (2, 0)
    name = "cpu"
    summary = "this machine's processor, through C++ kernels and torch"
    priority = 0

    def capabilities(self, device: Device) -> Capabilities:
        return replace(super().capabilities(device), dtypes=("bfloat16", "float32", "float16"))

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention":
        from platforms.cpu.attention import TorchAttention, unsupported

        try:
            return super().attention(spec, device)
        except UnsupportedShape as error:
            if reason := unsupported(spec):
                raise UnsupportedShape(f"{reason}, and of the C++ kernels: {error}") from error
            return TorchAttention(spec)

    def native_builds(self) -> "Mapping[str, NativeBuild]":
        from platforms.cpu.isa.levels import builds

        return builds()

    def _stand_ins(self) -> "Mapping[str, Implementation]":
        from platforms.cpu.kernels import torch_kernels

        return torch_kernels()
