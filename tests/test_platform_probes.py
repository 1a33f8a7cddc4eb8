"""What each platform says of machines that it was never run on: no hardware, no driver, no torch for it, everything."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machines import LevelZero, Machine, NvidiaDriver, accel, kfd, torch_built

from core.accelerator import AcceleratorPlatform, UnfinishedPlatform
from core.contracts.platform import Device, Platform, Probe
from core.contracts.validation import capability_problems, platform_problems, probe_problems
from core.errors import PlatformError
from core.probing import Host
from platforms.ascend.platform import AscendPlatform
from platforms.cpu.platform import CpuPlatform
from platforms.cuda.platform import CudaPlatform
from platforms.gaudi.platform import GaudiPlatform
from platforms.intel.platform import IntelPlatform
from platforms.rocm.platform import RocmPlatform
from platforms.spyre.platform import SpyrePlatform
from platforms.tpu.platform import TpuPlatform

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS: dict[str, Any] = {
    "ascend": AscendPlatform,
    "cuda": CudaPlatform,
    "gaudi": GaudiPlatform,
    "intel": IntelPlatform,
    "rocm": RocmPlatform,
    "spyre": SpyrePlatform,
    "tpu": TpuPlatform,
}
PRIORITIES = {"cuda": 50, "rocm": 50, "ascend": 40, "gaudi": 40, "intel": 40, "spyre": 30, "tpu": 30}

FOR_CUDA, FOR_ROCM, FOR_XPU = torch_built(cuda="13.0"), torch_built(hip="7.2"), torch_built(xpu="20260000")
H100 = "NVIDIA H100 80GB HBM3"
H100_CARD, H100_SWITCH = (0x10DE, 0x2330, 0x030200), (0x10DE, 0x22A3, 0x068000)
MI300X = (0x1002, 0x74A1, 0x120000)
ARC, UHD, BRIDGE = (0x8086, 0x56A0, 0x030000), (0x8086, 0x4680, 0x030000), (0x8086, 0x1237, 0x060000)
DRI = {"dev/dri/card0": "", "dev/dri/renderD128": ""}
GAUDI_2, GAUDI_3 = (0x1DA3, 0x1020, 0x120000), (0x1DA3, 0x1060, 0x120000)
ASCEND_910B, HUAWEI_NETWORK = (0x19E5, 0xD802, 0x120000), (0x19E5, 0x1822, 0x020000)
ASCEND_310P = (0x19E5, 0xD500, 0x120000)
V5E, GOOGLE_NETWORK = (0x1AE0, 0x0063, 0x120000), (0x1AE0, 0x001F, 0x020000)
SPYRE, POWER_BRIDGE = (0x1014, 0x06A7, 0x120000), (0x1014, 0x0483, 0x060400)


def nvidia(*names: str, **options: int) -> dict[str, Any]:
    return {"libcuda.so.1": NvidiaDriver(*names, **options)}


def level_zero(count: int, starts: bool = True) -> dict[str, Any]:
    return {"libze_loader.so.1": LevelZero(count, starts)}


def davinci(count: int) -> dict[str, str]:
    return {f"dev/davinci{i}": "" for i in range(count)}


CANN: dict[str, Any] = {"libascendcl.so": object()}
SYNAPSE: dict[str, Any] = {"libSynapse.so.1": object()}

# What to do, which one platform says of several machines.
GET_CUDA = "install torch for CUDA, see https://pytorch.org/get-started/locally"
DRIVE_CUDA = "install NVIDIA's driver, or start the container with --gpus all"
NO_CUDA = f"no NVIDIA GPU was found (libcuda.so.1 not found); if there is one, {DRIVE_CUDA}"
DRIVE_ROCM = "install amdgpu-dkms, or pass /dev/kfd and /dev/dri into the container"
DRIVE_INTEL = "load i915 or xe, or pass /dev/dri into the container"
DRIVE_GAUDI = "load the habanalabs driver, or start the container with --runtime=habana"
DRIVE_ASCEND = "install Huawei's driver, or pass /dev/davinci* into the container"
HIDDEN_CUDA = "the NVIDIA driver offers no GPU; CUDA_VISIBLE_DEVICES or the container may hide it"
HIDDEN_ROCM = "the AMD driver offers no GPU (none in /sys/class/kfd); ROCR_VISIBLE_DEVICES may hide it"

# Platform, what the machine has, and word for word what is said of it.
UNAVAILABLE: list[tuple[str, Machine, str]] = [
    ("cuda", Machine(), NO_CUDA),
    ("cuda", Machine(cards=[H100_SWITCH]), NO_CUDA),
    (
        "cuda",
        Machine(cards=[H100_SWITCH, H100_CARD], torch=FOR_CUDA),
        f"found NVIDIA GPU (PCI 10de:2330), but no driver for it (libcuda.so.1 not found): {DRIVE_CUDA}",
    ),
    ("cuda", Machine(libraries=nvidia(answer=100)), HIDDEN_CUDA),
    ("cuda", Machine(libraries=nvidia()), HIDDEN_CUDA),
    (
        "cuda",
        Machine(libraries=nvidia(H100, answer=803)),
        "the NVIDIA driver answered with error 803 (CUresult in cuda.h); nvidia-smi may say more",
    ),
    (
        "cuda",
        Machine(libraries=nvidia(H100), torch=None),
        f"found {H100}, but torch is not installed: {GET_CUDA}",
    ),
    (
        "cuda",
        Machine(libraries=nvidia(H100, H100)),
        f"found 2 x {H100}, but the torch that is installed was built without cuda: {GET_CUDA}",
    ),
    (
        "cuda",
        Machine(libraries=nvidia(H100), torch=FOR_ROCM),
        f"found {H100}, but the torch that is installed was built without cuda: {GET_CUDA}",
    ),
    (
        "cuda",
        Machine(libraries=nvidia(H100, known=12040), torch=FOR_CUDA),
        f"found {H100}, but its driver knows CUDA up to 12.4, and torch was built for 13.0: update the driver",
    ),
    ("rocm", Machine(), f"no AMD GPU was found (/dev/kfd not found); if there is one, {DRIVE_ROCM}"),
    (
        "rocm",
        Machine(cards=[MI300X]),
        f"found AMD GPU (PCI 1002:74a1), but no driver for it (/dev/kfd not found): {DRIVE_ROCM}",
    ),
    (
        "rocm",
        Machine(files=kfd(90402), closed=["dev/kfd"], torch=FOR_ROCM),
        "found AMD GPU, but this user may not open /dev/kfd: join the group that owns it (ls -l /dev/kfd)",
    ),
    ("rocm", Machine(files=kfd(), torch=FOR_ROCM), HIDDEN_ROCM),
    ("rocm", Machine(files=kfd(90402), environment={"ROCR_VISIBLE_DEVICES": ""}), HIDDEN_ROCM),
    (
        "rocm",
        Machine(files=kfd(90402), cards=[MI300X], torch=FOR_CUDA),
        "found AMD GPU (gfx942), but the torch that is installed was built without hip: "
        "install torch for ROCm, see https://pytorch.org/get-started/locally",
    ),
    (
        "intel",
        Machine(cards=[BRIDGE]),
        f"no Intel GPU was found (no display device of PCI vendor 8086); if there is one, {DRIVE_INTEL}",
    ),
    (
        "intel",
        Machine(cards=[ARC], files={"dev/dri/card0": ""}),
        f"found Intel GPU (PCI 8086:56a0), but no driver for it (no /dev/dri/renderD*): {DRIVE_INTEL}",
    ),
    (
        "intel",
        Machine(cards=[ARC], files=DRI, closed=["dev/dri/renderD128"]),
        "found Intel GPU, but this user may not open /dev/dri/renderD128: "
        "join the group that owns it (ls -l /dev/dri/renderD128)",
    ),
    (
        "intel",
        Machine(cards=[ARC], files=DRI),
        "found Intel GPU (PCI 8086:56a0), but libze_loader.so.1 was not found: "
        "install Intel's compute runtime (libze1, libze-intel-gpu1)",
    ),
    (
        "intel",
        Machine(cards=[ARC], files=DRI, libraries=level_zero(1, starts=False)),
        "found Intel GPU (PCI 8086:56a0), but Level Zero offers none: "
        "install libze-intel-gpu1, or see ZE_AFFINITY_MASK",
    ),
    (
        "intel",
        Machine(cards=[ARC], files=DRI, libraries=level_zero(1)),
        "found Intel GPU (PCI 8086:56a0), but the torch that is installed was built without xpu: "
        "pip install torch --index-url https://download.pytorch.org/whl/xpu",
    ),
    (
        "gaudi",
        Machine(files=accel(0x8086, 0x7D1D)),
        "no Intel Gaudi card was found (no /dev/accel/accel* or /dev/hl* of its driver); "
        f"if there is one, {DRIVE_GAUDI}",
    ),
    (
        "gaudi",
        Machine(cards=[GAUDI_2]),
        "found Intel Gaudi card (PCI 1da3:1020), but no driver for it "
        f"(no /dev/accel/accel* or /dev/hl* of its driver): {DRIVE_GAUDI}",
    ),
    (
        "gaudi",
        Machine(cards=[GAUDI_2], files=accel(0x1DA3, 0x1020, 0x1020)),
        "found 2 x Intel Gaudi 2, but libSynapse.so was not found: install habanalabs-graph",
    ),
    (
        "gaudi",
        Machine(cards=[GAUDI_3], files=accel(0x1DA3, 0x1060), libraries=SYNAPSE),
        "found Intel Gaudi 3, but the package habana_frameworks is not installed: "
        "it comes with Intel's Gaudi software and the torch built for it, see https://docs.habana.ai",
    ),
    (
        "ascend",
        Machine(cards=[HUAWEI_NETWORK]),
        f"no Ascend NPU was found (no /dev/davinci0); if there is one, {DRIVE_ASCEND}",
    ),
    (
        "ascend",
        Machine(cards=[HUAWEI_NETWORK, ASCEND_910B], files={"dev/davinci_manager": ""}),
        f"found Ascend NPU (PCI 19e5:d802), but no driver for it (no /dev/davinci0): {DRIVE_ASCEND}",
    ),
    (
        "ascend",
        Machine(cards=[ASCEND_910B], files=davinci(1)),
        "found Ascend 910B, but libascendcl.so was not found: install CANN, and source its set_env.sh",
    ),
    (
        "ascend",
        Machine(cards=[ASCEND_910B, ASCEND_310P], files=davinci(2), libraries=CANN),
        'found 2 x Ascend NPU, but the package torch_npu is not installed: pip install "core[ascend]"',
    ),
    (
        "ascend",
        Machine(files=davinci(1), libraries=CANN, environment={"ASCEND_RT_VISIBLE_DEVICES": "-1"}),
        "ASCEND_RT_VISIBLE_DEVICES hides Ascend NPU",
    ),
    (
        "tpu",
        Machine(cards=[GOOGLE_NETWORK]),
        "no TPU was found (none of PCI vendor 1ae0), and a runner for it is not written yet",
    ),
    (
        "tpu",
        Machine(cards=[V5E] * 4),
        "found 4 x TPU v5e, but a runner for it is not written yet; "
        "it will need jax, libtpu, /dev/accel* or /dev/vfio/*",
    ),
    (
        "tpu",
        Machine(cards=[V5E], files={"dev/accel0": ""}, packages=["jax", "libtpu"]),
        "found TPU v5e, but a runner for it is not written yet",
    ),
    (
        "spyre",
        Machine(cards=[POWER_BRIDGE]),
        "no Spyre card was found (no PCI 1014:06a7 or 1014:06a8), and a runner for it is not written yet",
    ),
    (
        "spyre",
        Machine(cards=[SPYRE], files={"dev/vfio/vfio": ""}),
        "found Spyre card, but a runner for it is not written yet; it will need torch_spyre, /dev/vfio/*",
    ),
    (
        "spyre",
        Machine(cards=[SPYRE] * 2, files={"dev/vfio/7": ""}, packages=["torch_spyre"]),
        "found 2 x Spyre card, but a runner for it is not written yet",
    ),
]

# Platform, a machine that has all it needs, the reason, what torch calls the devices, and what the first computes in.
BRAIN = ("bfloat16", "float16", "float32")
AVAILABLE: list[tuple[str, Machine, str, list[str], tuple[str, ...]]] = [
    (
        "cuda",
        Machine(cards=[H100_CARD] * 2, libraries=nvidia(H100, H100), torch=FOR_CUDA),
        f"2 x {H100}",
        ["cuda:0", "cuda:1"],
        BRAIN,
    ),
    (
        "cuda",
        Machine(libraries=nvidia("NVIDIA T4", H100, major=7), torch=""),  # of which torch says nothing
        f"1 x NVIDIA T4, 1 x {H100}",
        ["cuda:0", "cuda:1"],
        BRAIN[1:],
    ),
    (
        "rocm",
        Machine(files=kfd(90402, 90402, 110001), torch=FOR_ROCM),
        "2 x AMD GPU (gfx942), 1 x AMD GPU (gfx1101)",
        ["cuda:0", "cuda:1", "cuda:2"],
        BRAIN,
    ),
    (
        "rocm",
        Machine(
            files=kfd(90402, 90010, 100300),
            torch=FOR_ROCM,
            environment={
                "ROCR_VISIBLE_DEVICES": "2,1",
                "HIP_VISIBLE_DEVICES": "0",
                "CUDA_VISIBLE_DEVICES": "1",
            },
        ),
        "AMD GPU (gfx1030)",
        ["cuda:0"],
        BRAIN[1:],
    ),
    (
        "intel",
        Machine(cards=[ARC], files=DRI, libraries=level_zero(1), torch=FOR_XPU),
        "Intel GPU (PCI 8086:56a0)",
        ["xpu:0"],
        BRAIN,
    ),
    (
        "intel",
        Machine(cards=[ARC, UHD], files=DRI, libraries=level_zero(2), torch=FOR_XPU),
        "2 x Intel GPU",
        ["xpu:0", "xpu:1"],
        BRAIN,
    ),
    (
        "gaudi",
        Machine(files=accel(0x1DA3, 0x1020), libraries=SYNAPSE, packages=["habana_frameworks"]),
        "Intel Gaudi 2",
        ["hpu:0"],
        BRAIN,
    ),
    (
        "gaudi",
        Machine(
            files={"dev/hl0": "", "dev/hl1": "", "sys/class/habanalabs/hl0/device/device": "0x1000\n"},
            libraries=SYNAPSE,
            packages=["habana_frameworks"],
        ),
        "2 x Intel Gaudi",
        ["hpu:0", "hpu:1"],
        ("bfloat16", "float32"),
    ),
    (
        "ascend",
        Machine(cards=[ASCEND_910B] * 2, files=davinci(2), libraries=CANN, packages=["torch_npu"]),
        "2 x Ascend 910B",
        ["npu:0", "npu:1"],
        BRAIN,
    ),
    (
        "ascend",
        Machine(
            files=davinci(11),
            libraries=CANN,
            packages=["torch_npu"],
            environment={"ASCEND_RT_VISIBLE_DEVICES": "2,10"},
        ),
        "2 x Ascend NPU",
        ["npu:0", "npu:1"],
        BRAIN[1:],
    ),
]


def asked(name: str, machine: Machine, root: Path) -> tuple[Any, Probe]:
    """A platform on a machine, and what its probe says."""
    platform = PLATFORMS[name](machine.host(root))
    return platform, platform.probe()


# Probes


@pytest.mark.parametrize(("name", "machine", "reason"), UNAVAILABLE)
def test_a_machine_that_lacks_something_is_told_what(
    name: str, machine: Machine, reason: str, tmp_path: Path
) -> None:
    _, probe = asked(name, machine, tmp_path)

    assert probe == Probe(available=False, reason=reason)


@pytest.mark.parametrize(("name", "machine", "reason", "devices", "dtypes"), AVAILABLE)
def test_a_machine_that_has_everything_offers_its_devices(
    name: str, machine: Machine, reason: str, devices: list[str], dtypes: tuple[str, ...], tmp_path: Path
) -> None:
    platform, probe = asked(name, machine, tmp_path)

    assert (probe.available, probe.reason) == (True, reason)
    assert [device.torch_device for device in probe.devices] == devices
    assert [device.index for device in probe.devices] == list(range(len(devices)))
    assert platform.capabilities(probe.devices[0]).dtypes == dtypes
    assert probe_problems(probe) == []
    assert capability_problems(platform.capabilities(probe.devices[0])) == []


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_platform_is_tried_on_a_machine_that_lacks_everything_and_on_one_that_lacks_nothing(
    name: str,
) -> None:
    lacking = [reason for platform, _, reason in UNAVAILABLE if platform == name]
    offered = [platform for platform, *_ in AVAILABLE if platform == name]

    assert len(lacking) >= 3
    assert bool(offered) != issubclass(PLATFORMS[name], UnfinishedPlatform)


def test_probes_of_this_machine_take_no_time_and_load_no_torch() -> None:
    code = (
        "import importlib, json, sys, time\n"
        "taken = {}\n"
        "for name in sys.argv[1:]:\n"
        "    platform = importlib.import_module(f'platforms.{name}').core_platforms()[0]()\n"
        "    times = []\n"
        "    for _ in range(5):\n"
        "        start = time.perf_counter()\n"
        "        probe = platform.probe()\n"
        "        times.append(time.perf_counter() - start)\n"
        "    taken[name] = [probe.available, min(times)]\n"
        "print(json.dumps([taken, 'torch' in sys.modules]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *PLATFORMS], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    taken, torch_loaded = json.loads(ran.stdout)

    assert not torch_loaded
    absent = {name: seconds for name, (available, seconds) in taken.items() if not available}
    assert {name: seconds for name, seconds in absent.items() if seconds > 0.05} == {}


# The contract


@pytest.mark.parametrize("name", PLATFORMS)
def test_each_package_brings_one_platform_that_keeps_its_contract(name: str) -> None:
    (platform,) = importlib.import_module(f"platforms.{name}").core_platforms()

    assert platform is PLATFORMS[name]
    assert (platform.name, platform.contract, platform.priority) == (name, (2, 0), PRIORITIES[name])
    assert platform_problems(platform) == []


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_manifest_is_sound_where_there_is_no_hardware_either(name: str, tmp_path: Path) -> None:
    platform = PLATFORMS[name](Machine().host(tmp_path))
    device = Device(name="a device", torch_device=f"{platform.device_type}:0")

    assert capability_problems(platform.capabilities(device)) == []


def test_auto_prefers_every_accelerator_to_a_processor() -> None:
    assert min(PRIORITIES.values()) > CpuPlatform.priority


@pytest.mark.parametrize(
    ("version", "brain"),
    [(90006, False), (90008, True), (90010, True), (90500, True), (100300, False), (120001, True)],
)
def test_an_amd_gpu_takes_bfloat16_if_it_computes_in_it(version: int, brain: bool, tmp_path: Path) -> None:
    platform, probe = asked("rocm", Machine(files=kfd(version), torch=FOR_ROCM), tmp_path)

    assert ("bfloat16" in platform.capabilities(probe.devices[0]).dtypes) is brain


# What shows only once torch is there


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda", r"cannot use cuda:0: it finds no such device that works; install torch for CUDA, see"),
        ("rocm", r"cannot use cuda:0: it finds no such device that works; install torch for ROCm, see"),
        ("intel", r"cannot use xpu:0: it finds no such device that works; pip install torch --index-url"),
        (
            "gaudi",
            r"cannot use hpu:0: habana_frameworks.torch does not work with it \(No module named .*\); it",
        ),
        ("ascend", r"cannot use npu:0: torch_npu does not work with it \(No module named .*\); pip install"),
    ],
)
def test_a_torch_that_cannot_reach_the_device_is_told_before_anything_is_loaded(
    name: str, reason: str, tmp_path: Path
) -> None:
    if Host().files("dev/nvidia0") or Host().files("dev/kfd") or Host().files("dev/dri/renderD*"):
        pytest.skip("this machine may have the device")
    machine = next(machine for platform, machine, *_ in AVAILABLE if platform == name)
    platform, probe = asked(name, machine, tmp_path)
    assert isinstance(platform, AcceleratorPlatform)
    execution = platform.execution(probe.devices[0])
    assert execution is not None

    with pytest.raises(PlatformError, match=reason):
        execution.set_up()
    with pytest.raises(PlatformError, match=reason):
        platform.memory(probe.devices[0])


# What is claimed


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_summary_claims_nothing_that_nobody_ran(name: str) -> None:
    summary: str = PLATFORMS[name].summary
    overridden = {
        factory
        for factory in ("attention", "kernels", "communication", "runner")
        if getattr(PLATFORMS[name], factory) is not getattr(Platform, factory)
    }
    if (ROOT / "docs" / "certificates" / f"{name}.json").exists() and overridden:
        return
    assert overridden == set(), "it has something of its own: say so in the summary, and here"
    finished = issubclass(PLATFORMS[name], AcceleratorPlatform)
    assert ("kernels: the reference's, through torch" if finished else "it has no runner yet") in summary
