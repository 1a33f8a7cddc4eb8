"""Attention of every platform, and of the reference, against dense attention in float64."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.conformance import Result, available_platforms
from core.conformance.attention import check_attention
from core.conformance.scenarios import scenarios
from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, LayerCache
from core.contracts.platform import Capabilities, Device, Platform, Probe, SchedulingLimits
from core.discovery import load_plugins
from core.reference.attention import ReferenceAttention

CPU = Device(name="bare", torch_device="cpu")


class Bare(Platform):
    """Leaves everything to the reference, unless it is given an attention."""

    contract = (1, 0)
    name = "bare"
    device_type = "cpu"

    def __init__(self, attention: Callable[[AttentionSpec], Attention] | None = None, **limits: Any) -> None:
        self._attention = attention
        self._limits = SchedulingLimits(**limits)

    def probe(self) -> Probe:
        return Probe(available=True, reason="", devices=(CPU,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(scheduling=self._limits)

    def attention(self, spec: AttentionSpec, device: Device) -> Attention | None:
        return self._attention(spec) if self._attention else None


PLATFORMS = available_platforms(load_plugins()) | {"reference": (Bare(token_multiple=8), CPU)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problems(results: Iterator[Result]) -> list[str]:
    found = list(results)
    assert found
    return [str(result) for result in found if result.problem]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_attention_is_dense_attention(name: str, dtype: str) -> None:
    platform, device = PLATFORMS[name]

    for block_size in platform.capabilities(device).block_sizes[:2]:
        assert problems(check_attention(platform, device, dtype, block_size)) == []


def test_the_toy_platforms_attention_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toy_platform"))
    from toy_platform import ToyPlatform

    toy = ToyPlatform()

    assert problems(check_attention(toy, toy.probe().devices[0], "float32", 16)) == []


def test_sequences_beyond_a_devices_limit_are_tried_in_several_steps() -> None:
    assert problems(check_attention(Bare(max_num_seqs=2, separate_steps=True), CPU, "float32", 8)) == []


def test_long_prompts_and_many_decodes_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ReferenceAttention(_spec(16))
    batch = _decodes_and_prompt(16)
    assert len(whole.plan(batch).parts) == 2

    monkeypatch.setattr("core.reference.attention._AT_ONCE", 2**10)

    assert len(whole.plan(batch).parts) > 10
    assert problems(check_attention(Bare(), CPU, "float32", 16)) == []


def _spec(block_size: int) -> AttentionSpec:
    return next(scenarios(block_size)).spec("float32", block_size)


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


class _LongWindow(ReferenceAttention):
    """Sees one token too many behind its window."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, sliding_window=spec.sliding_window and spec.sliding_window + 1))


class _Unscaled(ReferenceAttention):
    """Forgets the scale."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, scale=1.0))


class _StoresKeysTwice(ReferenceAttention):
    """Confuses keys and values."""

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: Any) -> None:
        super().write(key, key, cache, plan)


class _ReadsWholeBlocks(ReferenceAttention):
    """Multiplies by 0 what lies past a length, where a NaN stays a NaN."""

    def attend(self, query: Tensor, cache: LayerCache, plan: Any) -> Tensor:
        return (
            super().attend(query, cache, plan)
            + 0 * cache.values[plan.slot_mapping // self.spec.block_size].sum()
        )


class _PoisonousPadding(ReferenceAttention):
    """Leaves the rows of padding tokens undefined."""

    def attend(self, query: Tensor, cache: LayerCache, plan: Any) -> Tensor:
        output = super().attend(query, cache, plan)
        output[plan.parts[-1].rows.stop :] = torch.nan
        return output


class _WritesBesides(ReferenceAttention):
    """Writes one block beside the right one too."""

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: Any) -> None:
        super().write(key, value, cache, plan)
        cache.keys[1:][cache.keys[1:].isnan()] = 0.0


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (_LongWindow, "elements are off"),
        (_Unscaled, "elements are off"),
        (_StoresKeysTwice, "elements are off"),
        (_ReadsWholeBlocks, "elements are off"),
        (_PoisonousPadding, "rows of padding tokens are not finite"),
        (_WritesBesides, "wrote into blocks that belong to nobody"),
    ],
)
def test_the_kit_finds_broken_attention(broken: Callable[[AttentionSpec], Attention], problem: str) -> None:
    found = problems(check_attention(Bare(broken, token_multiple=8), CPU, "float32", 8))

    assert any(problem in line for line in found)
