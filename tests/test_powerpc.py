"""The POWER platform, as far as it can be seen from another machine; its kernels are in test_native_cross.py."""

import platform

import pytest

from core.contracts.validation import platform_problems
from platforms.powerpc.platform import BUILD, MACHINE, PowerPcPlatform

elsewhere = pytest.mark.skipif(platform.machine() == MACHINE, reason="this machine has such a processor")


def test_it_keeps_the_contract() -> None:
    assert platform_problems(PowerPcPlatform) == []


@elsewhere
def test_on_another_machine_it_says_what_that_machine_is() -> None:
    probe = PowerPcPlatform().probe()

    assert not probe.available
    assert probe.reason == f"this machine is {platform.machine()}, not ppc64le"


def test_on_its_own_machine_it_goes_before_the_cpu_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    from platforms.cpu.platform import CpuPlatform

    monkeypatch.setattr(platform, "machine", lambda: MACHINE)
    probe = PowerPcPlatform().probe()

    assert probe.available and probe.devices[0].torch_device == "cpu"
    assert PowerPcPlatform.priority > CpuPlatform.priority


def test_its_headers_are_where_its_build_looks_for_them() -> None:
    (folder,) = BUILD.include

    assert {"isa.h", "outer.h"} <= {path.name for path in folder.iterdir()}
    assert PowerPcPlatform().native_builds() == {"native": BUILD}


@elsewhere
def test_without_its_kernels_the_reference_runs_and_the_reason_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from core.contracts.attention import AttentionSpec
    from core.contracts.kernels import KernelRequest
    from core.contracts.platform import Device
    from core.errors import UnsupportedShape
    from core.native.kernels import NAMES
    from core.native.library import native_library

    monkeypatch.setenv("LLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native_library.cache_clear()
    try:
        power, device = PowerPcPlatform(), Device(name="none", torch_device="cpu")
        offered, request = power.kernels(device), KernelRequest(dtype="float32")
        assert {*offered} == {*NAMES}
        for version in offered.values():
            assert "no-such-compiler" in (version.rejects(request) or "")
        assert power.capabilities(device).weight_formats == frozenset()
        spec = AttentionSpec(
            num_heads=2, num_kv_heads=1, head_dim=64, scale=0.1, dtype="float32", block_size=16
        )
        with pytest.raises(UnsupportedShape, match="no-such-compiler"):
            power.attention(spec, device)
    finally:
        native_library.cache_clear()
