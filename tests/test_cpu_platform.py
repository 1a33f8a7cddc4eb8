"""The cpu platform's own kernels: compiled once, right, and replaced by torch where nothing can be compiled."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.conformance.attention import check_attention
from core.contracts.attention import AttentionSpec
from platforms.cpu import native
from platforms.cpu.attention import CpuAttention
from platforms.cpu.platform import CpuPlatform

SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125, dtype="float32", block_size=16)


@pytest.fixture(autouse=True)
def own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without a compiled library and leaves none to the others."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def built(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "kernels").glob("*.so"))


def test_the_library_is_compiled_once_and_found_again(tmp_path: Path) -> None:
    assert native.decode_kernel("float32", 64, 2) is not None
    (name,) = built(tmp_path)
    before = (tmp_path / "kernels" / name).stat().st_mtime_ns

    native._library.cache_clear()
    assert native.decode_kernel("bfloat16", 128, 1) is not None

    assert built(tmp_path) == [name]
    assert (tmp_path / "kernels" / name).stat().st_mtime_ns == before
    assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700


def test_head_sizes_it_was_not_compiled_for_run_on_torch() -> None:
    assert native.decode_kernel("float32", 80, 2) is None
    assert native.decode_kernel("float16", 64, 2) is None
    assert native.decode_kernel("float32", 64, 17) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_compiler_decodes_run_on_torch_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    platform = CpuPlatform()
    with caplog.at_level(logging.WARNING, "platforms.cpu"):
        results = list(check_attention(platform, platform.probe().devices[0], dtype, 16))

    assert results
    assert [result for result in results if result.problem] == []
    assert caplog.text.count("no C++ compiler was found") == 1


def test_a_compiler_that_fails_is_reported_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "out of cheese" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING, "platforms.cpu"):
        assert native.decode_kernel("float32", 64, 2) is None
    assert "out of cheese" in caplog.text
    assert built(tmp_path) == []


def test_kernel_and_torch_agree_on_long_ragged_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.contracts.attention import AttentionBatch, LayerCache

    torch.manual_seed(0)
    lengths = (1, 15, 16, 17, 333, 1000)
    fast = CpuAttention(SPEC)
    monkeypatch.setattr("platforms.cpu.attention.decode_kernel", lambda *_: None)
    slow = CpuAttention(SPEC)
    layout = fast.layout(400)
    cache = LayerCache(torch.randn(layout.shape), torch.randn(layout.shape), layout.block_axis)
    tables = (torch.randperm(399)[: 6 * 63].reshape(6, 63) + 1).int()
    batch = AttentionBatch(
        query_lens=(1,) * 6,
        lengths=lengths,
        num_decodes=6,
        query_start=torch.arange(7, dtype=torch.int32),
        block_tables=tables,
        seq_lengths=torch.tensor(lengths, dtype=torch.int32),
        slot_mapping=torch.arange(6),
    )
    query = torch.randn(6, 4, 64) * 3
    expected = slow.attend(query, cache, slow.plan(batch))
    torch.testing.assert_close(fast.attend(query, cache, fast.plan(batch)), expected, rtol=1e-5, atol=1e-5)
