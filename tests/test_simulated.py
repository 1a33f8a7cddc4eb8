"""The simulated accelerator: right for those who keep the contract, and strict with those who do not."""

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from core.contracts.attention import LayerCache
from core.contracts.kernels import Implementation
from core.contracts.platform import Capabilities, Device, SchedulingLimits
from core.discovery import load_plugins
from core.errors import ConfigError, ContractViolation, OutOfDeviceMemory
from core.reference import KERNELS
from platforms.simulated.execution import SimulatedExecution
from platforms.simulated.memory import StrictMemory
from platforms.simulated.options import KernelFault, Options
from platforms.simulated.platform import SimulatedPlatform

DEVICE = Device(name="simulated accelerator", torch_device="cpu")
NUM_BLOCKS = 8


def kernels(fault: KernelFault | None = None) -> Mapping[str, Implementation]:
    from platforms.simulated.kernels import implementations

    return implementations(fault)


# Options


def test_options_are_read_from_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = (
        "memory=256MiB, block_size=48,alignment=64,latency_ms=2.5,fail_kernel=rms_norm@100,oom_after=3,"
        "hang_step=5,hang_seconds=30,separate_steps=0,token_multiple=16,max_num_seqs=4"
    )
    monkeypatch.setenv("LLM_SIMULATED", everything)

    assert Options.from_environment() == Options(
        memory=256 * 2**20,
        block_size=48,
        alignment=64,
        latency_ms=2.5,
        fail_kernel=KernelFault(kernel="rms_norm", call=100),
        oom_after=3,
        hang_step=5,
        hang_seconds=30.0,
        separate_steps=False,
        token_multiple=16,
        max_num_seqs=4,
    )
    assert Options.parse("") == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memroy=1GiB", "has no option 'memroy'; did you mean memory?"),
        ("color=red", "has no option 'color'; known: memory, block_size"),
        ("memory=much", "memory is 'much'; write bytes"),
        ("memory", "memory has no value; write memory=VALUE"),
        ("oom_after=1,oom_after=2", "oom_after is given twice"),
        ("block_size=0", "block_size is '0'; a whole number from 1 up"),
        ("token_multiple=-8", "token_multiple is '-8'; a whole number from 1 up"),
        ("separate_steps=yes", "separate_steps is 'yes'; 0 or 1"),
        ("latency_ms=nan", "latency_ms is 'nan'; a number from 0 up"),
        ("fail_kernel=rms_nrm@1", "NAME@CALL is accepted, with NAME one of embedding"),
        ("fail_kernel=rms_norm", "fail_kernel=rms_norm@CALL is ''; a whole number from 1 up"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_accepted(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Options.parse(text)

    assert message in str(refusal.value)
    assert "LLM_SIMULATED" in str(refusal.value)


# Platform


def test_the_manifest_is_unusual_and_follows_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    usual: Capabilities = SimulatedPlatform().capabilities(DEVICE)
    monkeypatch.setenv("LLM_SIMULATED", "block_size=40,alignment=7,separate_steps=0,max_num_seqs=3")
    asked = SimulatedPlatform().capabilities(DEVICE)

    assert (usual.block_sizes, usual.alignment_bytes) == ((24, 12), 192)
    assert usual.scheduling == SchedulingLimits(separate_steps=True, token_multiple=8)
    assert (asked.block_sizes, asked.alignment_bytes) == ((40,), 7)
    assert asked.scheduling == SchedulingLimits(separate_steps=False, token_multiple=8, max_num_seqs=3)


def test_the_probe_reports_options_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "speed=9")

    probe = SimulatedPlatform().probe()

    assert not probe.available
    assert "LLM_SIMULATED has no option 'speed'" in probe.reason


def test_auto_never_chooses_it_and_its_name_does() -> None:
    plugins = load_plugins()

    assert plugins.select_platform("auto")[0].name != "simulated"
    assert plugins.select_platform("simulated")[0].name == "simulated"


def test_discovering_it_imports_no_torch() -> None:
    code = (
        "import sys, platforms.simulated as plugin; platform = plugin.core_platforms()[0]();"
        "platform.capabilities(platform.probe().devices[0]); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Memory


def test_fresh_memory_is_poisoned() -> None:
    memory = StrictMemory(DEVICE, Options(alignment=4))

    assert memory.allocate((3, 4), "bfloat16").isnan().all()
    assert (memory.allocate((2,), "int64") == torch.iinfo(torch.int64).max).all()
    assert memory.num_allocations == 2


def test_memory_ends_at_its_cap_and_comes_back() -> None:
    memory = StrictMemory(DEVICE, Options(memory=1920))
    first = memory.allocate((192, 2), "float32")

    with pytest.raises(OutOfDeviceMemory, match=r"384 B of 1\.9 KiB are free"):
        memory.allocate((192, 1), "float32")

    assert memory.statistics().allocated == first.nbytes == 1536
    del first
    assert memory.allocate((480,), "float32").nbytes == 1920


def test_an_allocation_off_the_alignment_breaks_the_contract() -> None:
    with pytest.raises(ContractViolation, match=r"\[10, 10\] float32 is 400 bytes, not a multiple of 192"):
        StrictMemory(DEVICE, Options()).allocate((10, 10), "float32")


def test_allocations_fail_when_asked_to() -> None:
    memory = StrictMemory(DEVICE, Options(oom_after=2))
    kept = [memory.allocate((48,), "float32") for _ in range(2)]

    for _ in range(2):
        with pytest.raises(OutOfDeviceMemory, match="allocation 3 fails"):
            memory.allocate((48,), "float32")
    assert memory.num_allocations == len(kept)


def blank_cache() -> LayerCache:
    shape = (NUM_BLOCKS, 12, 2, 8)
    return LayerCache(torch.zeros(shape), torch.zeros(shape), 0)


def test_discarded_blocks_are_poisoned_and_no_others() -> None:
    cache = blank_cache()

    StrictMemory(DEVICE, Options()).discard_blocks([cache], [2, 5])

    for storage in (cache.keys, cache.values):
        assert [bool(block.isnan().all()) for block in storage] == [i in (2, 5) for i in range(NUM_BLOCKS)]
        assert int(storage.isnan().sum()) == 2 * storage[0].numel()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(1, 2), (3, 2)], "write a block twice"),
        ([(1, 2), (2, 3)], "or one that they read"),
        ([(0, 2)], "block 0 is copied"),
        ([(1, NUM_BLOCKS)], f"block {NUM_BLOCKS} is copied; blocks 1 to {NUM_BLOCKS - 1} are sequences'"),
    ],
)
def test_impossible_copies_break_the_contract(pairs: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ContractViolation, match=message):
        StrictMemory(DEVICE, Options()).copy_blocks([blank_cache()], pairs)


def test_block_zero_is_never_discarded() -> None:
    with pytest.raises(ContractViolation, match="block 0 is discarded"):
        StrictMemory(DEVICE, Options()).discard_blocks([blank_cache()], [3, 0])


# Execution


def test_steps_take_their_latency_and_one_of_them_hangs() -> None:
    def duration(step: Any) -> float:
        start = time.perf_counter()
        assert step("inputs") == "inputs"
        return time.perf_counter() - start

    step: Any = SimulatedExecution(Options(latency_ms=5, hang_step=2, hang_seconds=0.2)).wrap(
        lambda inputs: inputs
    )
    first, second, third = (duration(step) for _ in range(3))

    assert first >= 0.005
    assert second >= 0.2
    assert 0.005 <= third < 0.2


# Kernels


def test_a_kernel_fails_on_the_call_it_is_asked_to_and_on_no_other() -> None:
    faulty = kernels(KernelFault(kernel="linear", call=3))["linear"].function
    first, second = faulty(torch.ones(2, 4), None), faulty(torch.ones(2, 4), None)
    x = torch.ones(1, 4)

    first(x), second(x)
    with pytest.raises(RuntimeError, match="linear failed on call 3"):
        first(x)

    assert second(x).tolist() == [[4.0, 4.0]]


BAD_CALLS = [
    ("embedding", (), (torch.tensor([0, 9]), torch.zeros(9, 4)), "token ids must lie in [0, 9)"),
    ("embedding", (), (torch.tensor([0], dtype=torch.int32), torch.zeros(9, 4)), "token ids [N] int64"),
    ("linear", (torch.zeros(3, 4), None), (torch.zeros(2, 5),), "x [N, in]"),
    ("linear", (torch.zeros(3, 4), torch.zeros(4)), (torch.zeros(2, 4),), "a bias [out]"),
    ("linear", (torch.zeros(3, 4), None), (torch.zeros(2, 4, dtype=torch.bfloat16),), "agree in dtype"),
    ("rms_norm", (), (torch.zeros(2, 4), torch.ones(3), 1e-5), "weight [H]"),
    ("rms_norm", (), (torch.zeros(4, 2).t(), torch.ones(4), 1e-5), "last axis must be dense"),
    ("add_rms_norm", (), (torch.zeros(2, 4), torch.zeros(3, 4), torch.ones(4), 1e-5), "a residual like x"),
    (
        "rotary",
        (),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), torch.zeros(2, 3), torch.zeros(2, 3)),
        "R <= D",
    ),
    ("silu_and_mul", (), (torch.zeros(2, 3),), "[N, 2 * I]"),
    ("sample", (), tuple(torch.zeros(2, 5) if i == 0 else torch.zeros(2) for i in range(6)), "top_k int64"),
]


@pytest.mark.parametrize(("name", "prepare", "arguments", "message"), BAD_CALLS)
def test_a_kernel_refuses_arguments_outside_its_contract(
    name: str, prepare: tuple[Any, ...], arguments: tuple[Any, ...], message: str
) -> None:
    function = kernels()[name].function

    with pytest.raises(ContractViolation) as refusal:
        (function(*prepare) if KERNELS[name].prepared else function)(*arguments)

    assert f"simulated: {name}: " in str(refusal.value)
    assert message in str(refusal.value)


def test_every_kernel_is_checked_but_the_composed_ones() -> None:
    assert set(kernels()) == {name for name, kernel in KERNELS.items() if not kernel.composed}
