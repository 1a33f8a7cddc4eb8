"""What platforms have in common whose device is the processor: the C++ kernels, and what to say where there are none.

A platform adds its builds: compiler flags, and headers for its instruction set. Names no processor, and imports torch
only once a platform is chosen.
"""

import importlib.util
import platform as host
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.contracts.platform import FEATURES, Capabilities, Defaults, Device, Platform, Probe
from core.contracts.quantization import FORMATS
from core.errors import ConfigError, UnsupportedShape
from core.native.cores import available_cores
from core.native.toolchain import NativeBuild, obtainable

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.execution import Execution
    from core.contracts.kernels import Implementation
    from core.contracts.model import ModelDescription


class NativePlatform(Platform):
    """The processor that this runs on. Of its builds the first is used; the reference stands in for what it lacks."""

    device_type = "cpu"

    @abstractmethod
    def native_builds(self) -> Mapping[str, NativeBuild]: ...

    def probe(self) -> Probe:
        if importlib.util.find_spec("torch") is None:
            return Probe(available=False, reason="torch is not installed")
        try:
            self._build()
        except ConfigError as error:  # a level that was asked for, and is not there
            return Probe(available=False, reason=str(error))
        count = len(available_cores())
        name = f"{host.machine()}, {count} core{'s' if count != 1 else ''}"
        return Probe(available=True, reason=name, devices=(Device(name=name, torch_device="cpu"),))

    def capabilities(self, device: Device) -> Capabilities:
        """Compiles nothing. Should compiling fail later, what stands in for the kernels takes the same weights."""
        return Capabilities(
            dtypes=("bfloat16", "float32"),
            block_sizes=(16, 8, 32, 64, 128),
            # What the kernels do not do of these, torch operations or the reference do.
            features=frozenset(FEATURES),
            weight_formats=frozenset(FORMATS) if obtainable(self._build()) else frozenset(),
            kv_cache_dtypes=frozenset({"int8"}),
        )

    def defaults(self, model: "ModelDescription", device: Device) -> Defaults:
        import psutil

        available = psutil.virtual_memory().available
        return Defaults(
            kv_cache_memory=min(4 * 2**30, available // 3),
            max_num_batched_tokens=2048,
            prefill_chunk_size=512,  # of a model of 135M parameters, two cores compute 512 tokens in 0.4 s
        )

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention":
        from core.native.attention import NativeAttention, unsupported
        from core.native.library import native_library

        library = native_library(self._build())
        if isinstance(library, str):
            raise UnsupportedShape(library)
        if reason := unsupported(spec):
            raise UnsupportedShape(reason)
        return NativeAttention(spec, library)

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        from core.native.kernels import implementations
        from core.native.library import native_library

        library = native_library(self._build())
        offered = implementations(library)
        return {**offered, **self._stand_ins()} if isinstance(library, str) else offered

    def _stand_ins(self) -> "Mapping[str, Implementation]":
        """What serves better than the reference where the kernels cannot be had."""
        return {}

    def execution(self, device: Device) -> "Execution":
        from core.native.execution import PinnedExecution

        return PinnedExecution()

    def _build(self) -> NativeBuild:
        return next(iter(self.native_builds().values()))
