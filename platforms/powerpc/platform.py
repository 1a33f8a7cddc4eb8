"""POWER processors as a platform. Imports torch only once it is chosen."""

import platform as host
from collections.abc import Mapping
from pathlib import Path

from core.contracts.platform import Probe
from core.native.platform import NativePlatform
from core.native.toolchain import NativeBuild

MACHINE = "ppc64le"
BUILD = NativeBuild((Path(__file__).parent / "isa",), ("-mcpu=native",), "powerpc-native")


class PowerPcPlatform(NativePlatform):
    """POWER8 and later under little-endian Linux."""

    contract = (2, 0)
    name = "powerpc"
    summary = "POWER8 and later under little-endian Linux: VSX, and POWER10's matrix instructions"
    priority = 10

    def probe(self) -> Probe:
        if host.machine() != MACHINE:
            return Probe(available=False, reason=f"this machine is {host.machine()}, not {MACHINE}")
        return super().probe()

    def native_builds(self) -> Mapping[str, NativeBuild]:
        return {"native": BUILD}
