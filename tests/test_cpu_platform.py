"""The cpu platform: C++ kernels where they can be compiled, torch in their place where they cannot."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.environment import as_dict as environment
from core import LLM, SamplingParams
from core.conformance.attention import check_attention
from core.conformance.kernels import check_kernels
from core.contracts.attention import AttentionSpec
from core.native.attention import NativeAttention
from core.native.cores import available_cores, hardware_threads, one_of_each_core, usable_processors
from core.native.library import native_library
from platforms.cpu.attention import TorchAttention
from platforms.cpu.isa.levels import chosen_build
from platforms.cpu.platform import CpuPlatform

SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125, dtype="float32", block_size=16)
PLATFORM = CpuPlatform()
DEVICE = PLATFORM.probe().devices[0]


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    native_library.cache_clear()
    yield
    native_library.cache_clear()


def greedy(folder: Path) -> list[int]:
    prompt, params = list(range(5, 60)), SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM(str(folder), platform="cpu", dtype="float32") as llm:
        return list(llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids)


def needs_library() -> None:
    found = native_library(chosen_build())
    if isinstance(found, str):
        pytest.skip(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_a_compiler_everything_runs_on_torch_and_the_log_says_so(
    no_compiler: None, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    with caplog.at_level(logging.WARNING):
        results = [*check_attention(PLATFORM, DEVICE, dtype, 16), *check_kernels(PLATFORM, DEVICE, dtype)]

    assert {result.subject for result in results} >= {"attention", "linear", "gated_mlp", "decoder_layer"}
    assert [str(result) for result in results if result.problem] == []
    assert caplog.text.count("no C++ compiler was found") == 1
    assert isinstance(PLATFORM.attention(SPEC, DEVICE), TorchAttention)
    assert PLATFORM.capabilities(DEVICE).weight_formats == frozenset()


def test_without_a_compiler_the_ledger_gives_the_reason_and_the_answers_stay_the_same(
    tiny_llama: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    needs_library()
    compiled = greedy(tiny_llama)
    request.getfixturevalue("no_compiler")

    with LLM(str(tiny_llama), platform="cpu", dtype="float32") as llm:
        rejected = {choice.what: choice.rejected for choice in llm.ledger.choices}

    assert "no C++ compiler was found" in rejected["decoder_layer"][0].reason
    assert greedy(tiny_llama) == compiled


def test_head_sizes_and_dtypes_that_are_not_compiled_run_on_torch() -> None:
    needs_library()
    assert isinstance(PLATFORM.attention(SPEC, DEVICE), NativeAttention)
    for odd in (replace(SPEC, head_dim=72), replace(SPEC, dtype="float16")):
        assert isinstance(PLATFORM.attention(odd, DEVICE), TorchAttention)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block_size", [8, 64])
def test_attention_in_cpp_conforms_at_other_block_sizes(dtype: str, block_size: int) -> None:
    needs_library()
    results = list(check_attention(PLATFORM, DEVICE, dtype, block_size))
    assert results
    assert [str(result) for result in results if result.problem] == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, len(available_cores())),
        ({"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}, None),
        ({"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_threads_that_the_environment_describes_are_left_as_they_are(
    variables: dict[str, str], expected: int | None
) -> None:
    """A thread that the environment bound to a core has only that one, but the pool has them all."""
    program = (
        "import torch; before = torch.get_num_threads(); "
        "from core.native.execution import PinnedExecution; PinnedExecution().set_up(); "
        "print(before, torch.get_num_threads())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=kept | variables, capture_output=True, text=True, check=True
    )
    before, after = map(int, ran.stdout.split())
    assert after == (before if expected is None else expected)


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [({0, 1, 2, 3}, [0, 1]), ({2, 3}, [2, 3]), ({0, 2}, [0]), ({1, 2, 3}, [1, 2]), ({5}, [5])],
)
def test_hardware_threads_of_one_core_count_once(allowed: set[int], expected: list[int]) -> None:
    assert one_of_each_core(allowed, lambda cpu: {cpu % 2, cpu % 2 + 2, cpu}) == expected


def test_every_processor_is_usable_where_the_system_restricts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_processors() == {0, 1, 2}
    assert environment()["machine"]["threads usable by this process"] == 3


def test_every_processor_shares_its_core_at_least_with_itself() -> None:
    for cpu in os.sched_getaffinity(0):
        assert cpu in hardware_threads(cpu)
    assert hardware_threads(10**6) == {10**6}
