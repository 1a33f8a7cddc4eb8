"""Attention of every platform, and of the reference, against dense attention in float64."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bare_platform import CPU, Bare

from core.conformance import available_platforms
from core.conformance.attention import check_attention
from core.conformance.scenarios import scenarios
from core.contracts.attention import AttentionBatch, AttentionSpec
from core.contracts.platform import Capabilities, Device, Platform, SchedulingLimits
from core.discovery import load_plugins
from core.reference.attention import ReferenceAttention

REFERENCE = Bare(
    dtypes=("float32", "bfloat16"), block_sizes=(16, 8), scheduling=SchedulingLimits(token_multiple=8)
)
PLATFORMS = available_platforms(load_plugins()) | {"reference": (REFERENCE, CPU)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problems(platform: Platform, device: Device, dtype: str, block_size: int) -> list[str]:
    results = list(check_attention(platform, device, dtype, block_size))
    assert sum(result.passed for result in results) * 2 > len(results)
    return [str(result) for result in results if result.problem]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_attention_is_dense_attention(name: str, dtype: str) -> None:
    platform, device = PLATFORMS[name]

    for block_size in platform.capabilities(device).block_sizes[:2]:
        assert problems(platform, device, dtype, block_size) == []


def test_the_toy_platforms_attention_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toy_platform"))
    from toy_platform import ToyPlatform

    toy = ToyPlatform()

    assert problems(toy, toy.probe().devices[0], "float32", 16) == []


def test_long_prompts_and_many_decodes_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ReferenceAttention(_spec(16))
    batch = _decodes_and_prompt(16)
    assert len(whole.plan(batch).parts) == 2

    monkeypatch.setattr("core.reference.attention._AT_ONCE", 2**10)

    assert len(whole.plan(batch).parts) > 10
    assert problems(REFERENCE, CPU, "float32", 16) == []


def _spec(block_size: int) -> AttentionSpec:
    return next(scenarios(block_size, Capabilities())).spec("float32", block_size)


def _decodes_and_prompt(block_size: int) -> AttentionBatch:
    lengths = (30, 20, 64)
    return AttentionBatch(
        query_lens=(1, 1, 64),
        lengths=lengths,
        num_decodes=2,
        query_start=torch.tensor([0, 1, 2, 66], dtype=torch.int32),
        block_tables=torch.arange(1, 13, dtype=torch.int32).view(3, 4),
        seq_lengths=torch.tensor(lengths, dtype=torch.int32),
        slot_mapping=torch.arange(66),
    )
