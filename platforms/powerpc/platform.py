"""POWER processors as a platform. Imports torch only once it is chosen."""

import importlib.util
import os
import platform as host
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core.contracts.platform import Capabilities, Defaults, Device, Platform, Probe
from core.native.toolchain import NativeBuild

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.kernels import Implementation
    from core.contracts.model import ModelDescription

MACHINE = "ppc64le"
BUILD = NativeBuild((Path(__file__).parent / "isa",), ("-mcpu=native",), "powerpc-native")


class PowerPcPlatform(Platform):
    """POWER8 and later under little-endian Linux."""

    contract = (1, 0)
    name = "powerpc"
    device_type = "cpu"
    summary = "POWER8 and later under little-endian Linux: VSX, and POWER10's matrix instructions"
    priority = 10

    def probe(self) -> Probe:
        if host.machine() != MACHINE:
            return Probe(available=False, reason=f"this machine is {host.machine()}, not {MACHINE}")
        if importlib.util.find_spec("torch") is None:
            return Probe(available=False, reason="torch is not installed")
        cores = len(os.sched_getaffinity(0))
        name = f"{MACHINE}, {cores} thread{'s' if cores != 1 else ''}"
        return Probe(available=True, reason=name, devices=(Device(name=name, torch_device="cpu"),))

    def capabilities(self, device: Device) -> Capabilities:
        from core.native.kernels import WEIGHT_FORMATS
        from core.native.library import native_library

        return Capabilities(
            dtypes=("bfloat16", "float32"),
            block_sizes=(16, 8, 32, 64, 128),
            weight_formats=frozenset() if isinstance(native_library(BUILD), str) else WEIGHT_FORMATS,
        )

    def defaults(self, model: "ModelDescription", device: Device) -> Defaults:
        import psutil

        available = psutil.virtual_memory().available
        return Defaults(kv_cache_memory=min(4 * 2**30, available // 3), max_num_batched_tokens=2048)

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention | None":
        from core.native.attention import NativeAttention, unsupported
        from core.native.library import native_library

        library = native_library(BUILD)
        return None if isinstance(library, str) or unsupported(spec) else NativeAttention(spec, library)

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        from core import reference
        from core.contracts.kernels import Implementation
        from core.native.kernels import implementations
        from core.native.library import native_library

        library = native_library(BUILD)
        if not isinstance(library, str):
            return implementations(library)
        # Rejected, so that the ledger has the reason.
        layer = reference.KERNELS["decoder_layer"].reference
        return {"decoder_layer": Implementation(function=layer, rejects=lambda _: library)}

    def native_builds(self) -> Mapping[str, NativeBuild]:
        return {"native": BUILD}
