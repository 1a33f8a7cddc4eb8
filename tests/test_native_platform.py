"""What a platform says of the C++ kernels before they are compiled, and what runs when they then cannot be."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from core import LLM, SamplingParams
from core.conformance.kernels import check_kernels
from core.contracts.attention import AttentionSpec
from core.contracts.kernels import KernelRequest
from core.contracts.platform import Device
from core.contracts.quantization import FORMATS
from core.contracts.validation import platform_problems
from core.errors import UnsupportedShape
from core.native.kernels import NAMES
from core.native.library import native_library
from core.native.platform import NativePlatform
from core.native.toolchain import NativeBuild
from platforms.cpu.platform import CpuPlatform

CPU = CpuPlatform()
DEVICE = CPU.probe().devices[0]


@pytest.fixture
def broken_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that answers when it is asked for its version, and compiles nothing."""
    script = tmp_path / "broken"
    script.write_text('#!/bin/sh\ncase "$*" in *--version) echo 1;; *) echo out of luck >&2; exit 1;; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(script))
    native_library.cache_clear()
    yield
    native_library.cache_clear()


def test_a_platforms_manifest_is_given_without_compiling_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from core.discovery import load_plugins;"
        "found = next(f for f in load_plugins().platforms if f.name == 'cpu');"
        "print(len(found.platform.capabilities(found.probe.devices[0]).weight_formats), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "LLM_CACHE": str(tmp_path / "cache"), "CXX": "true"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert (ran.stdout.split(), ran.stderr) == ([str(len(FORMATS)), "False"], "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_stands_in_for_kernels_that_do_not_compile_takes_every_format_that_was_declared(
    broken_compiler: None, dtype: str
) -> None:
    assert CPU.capabilities(DEVICE).weight_formats == FORMATS.keys()

    results = list(check_kernels(CPU, DEVICE, dtype))

    assert [str(result) for result in results if result.problem] == []
    assert any(" as q4_1" in result.case for result in results)


def test_a_quantised_model_is_loaded_though_the_kernels_do_not_compile_and_the_ledger_says_why(
    broken_compiler: None, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(str(tiny_llama), platform="cpu", dtype="bfloat16", quantization="int8") as llm:
        rejected = {choice.what: choice.rejected for choice in llm.ledger.choices}
        (answer,) = llm.generate([list(range(5, 40))], params, use_tqdm=False)

    assert len(answer.outputs[0].token_ids) == 8
    for kernel in ("decoder_layer", "rms_norm", "argmax"):
        assert "do not compile: out of luck" in rejected[kernel][0].reason
    assert rejected["linear"] == ()  # torch's vendor library stands in
    assert caplog.text.count("out of luck") == 1


class Bare(NativePlatform):
    """All that a platform for another processor has to bring."""

    contract = (2, 0)
    name = "bare"

    def native_builds(self) -> Mapping[str, NativeBuild]:
        return {"native": NativeBuild((), ("-O1",), "bare")}


def test_a_platform_for_another_processor_is_a_name_and_a_build(broken_compiler: None) -> None:
    bare, device = Bare(), Device(name="none", torch_device="cpu")

    assert platform_problems(Bare) == []
    assert bare.probe().available
    spec = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=64, scale=0.1, dtype="float32", block_size=16)
    with pytest.raises(UnsupportedShape, match="out of luck"):
        bare.attention(spec, device)
    request = KernelRequest(dtype="bfloat16")
    rejected = {name: offered.rejects(request) for name, offered in bare.kernels(device).items()}
    assert {*rejected} == {*NAMES}
    assert all("out of luck" in str(reason) for reason in rejected.values())
