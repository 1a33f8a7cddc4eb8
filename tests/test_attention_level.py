"""Level "attention": what is right passes it, what is wrong is found, and what is left out says why."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from bare_platform import CPU, Bare
from torch import Tensor

from core.conformance import Options, Result
from core.conformance.attention import check, check_attention
from core.contracts.attention import AttentionBatch, AttentionSpec, LayerCache
from core.contracts.platform import SchedulingLimits
from core.reference.attention import ReferenceAttention
from platforms.cpu.attention import TorchAttention

PADDED = SchedulingLimits(token_multiple=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def wrong(results: Iterator[Result]) -> dict[str, str]:
    """What is wrong, by case."""
    found = list(results)
    assert {result.level for result in found} == {"attention"}
    return {result.case.removesuffix(", blocks of 8"): result.problem for result in found if result.problem}


def not_passed(results: list[Result]) -> list[str]:
    return [str(result) for result in results if not result.passed]


# What is right


def test_the_torch_path_of_cpu_passes_every_scenario_in_every_dtype() -> None:
    every = ("float32", "bfloat16", "float16")

    results = list(check(Bare(TorchAttention, dtypes=every, block_sizes=(16, 32)), CPU, Options(quick=True)))

    assert not_passed(results) == []
    assert {result.dtype for result in results} == set(every)


def test_the_reference_passes_every_scenario_in_every_cache_dtype() -> None:
    results = list(check(Bare(kv_cache_dtypes=frozenset({"int8"})), CPU, Options()))

    assert not_passed(results) == []
    assert sum("kept in int8" in result.case for result in results) * 2 == len(results)


def test_sequences_beyond_a_devices_limit_are_tried_in_several_steps() -> None:
    limits = SchedulingLimits(max_num_seqs=2, separate_steps=True)

    assert not_passed(list(check_attention(Bare(scheduling=limits), CPU, "float32", 8))) == []


# What is left out


def test_only_the_first_block_size_is_tried_when_it_has_to_be_quick() -> None:
    platform = Bare(block_sizes=(8, 4))

    quick, whole = (
        {result.case.rpartition(", blocks of ")[2] for result in check(platform, CPU, Options(quick=each))}
        for each in (True, False)
    )

    assert (quick, whole) == ({"8"}, {"8", "4"})


def test_scenarios_outside_the_manifest_are_reported_with_the_reason() -> None:
    results = list(check(Bare(features=frozenset[str](), head_dims=(32,)), CPU, Options()))
    found = {result.case.removesuffix(", blocks of 8"): result for result in results}

    assert [str(result) for result in results if result.problem] == []
    assert "has no soft_cap among its features" in found["a soft cap of 0.5"].unsupported
    assert "has no alibi among its features" in found["ALiBi, 12 heads on 4"].unsupported
    assert "has no sliding_window among its features" in found["a window of 4"].unsupported
    assert "head_dim is 128" in found["6 heads of 128 on 2"].unsupported
    assert found["4 heads of 32 on 2"].passed and found["prompts, chunks and decodes"].passed


# What is wrong


class Unscaled(ReferenceAttention):
    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, scale=1.0))


class KeysForValues(ReferenceAttention):
    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: Any) -> None:
        super().write(key, key, cache, plan)


class PoisonousPadding(ReferenceAttention):
    """Leaves the rows of padding tokens undefined."""

    def attend(self, query: Tensor, cache: LayerCache, plan: Any) -> Tensor:
        output = super().attend(query, cache, plan)
        output[plan.parts[-1].rows.stop :] = torch.nan
        return output


class WritesBesides(ReferenceAttention):
    """Writes blocks of nobody, too."""

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: Any) -> None:
        super().write(key, value, cache, plan)
        cache.keys[1:][cache.keys[1:].isnan()] = 0.0


class TimesZero(ReferenceAttention):
    """Multiplies by 0 what lies past a length, where a NaN stays a NaN."""

    def attend(self, query: Tensor, cache: LayerCache, plan: Any) -> Tensor:
        output, end = super().attend(query, cache, plan), plan.parts[-1].rows.stop
        output[:end] += 0 * cache.values[plan.slot_mapping // self.spec.block_size].sum()
        return output


class ReadsOn(ReferenceAttention):
    """Takes in whole blocks; a NaN past a length it takes for nothing."""

    def plan(self, batch: AttentionBatch) -> Any:
        size, tables = self.spec.block_size, batch.block_tables.tolist()
        self._past = [
            (row[(n - 1) // size], (n - 1) % size + 1) for row, n in zip(tables, batch.lengths, strict=True)
        ]
        return super().plan(batch)

    def attend(self, query: Tensor, cache: LayerCache, plan: Any) -> Tensor:
        past = [cache.values[block, offset:].nan_to_num(0.0).sum() for block, offset in self._past]
        return super().attend(query, cache, plan) + sum(past)


class Remembers(ReferenceAttention):
    """Reads what lies where the first step of this shape had its blocks."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        self._plans: dict[Any, Any] = {}

    def plan(self, batch: AttentionBatch) -> Any:
        first = self._plans.setdefault((batch.query_lens, batch.lengths), super().plan(batch))
        return replace(first, slot_mapping=batch.slot_mapping)


class ABlockShort(ReferenceAttention):
    """Believes that a sequence that fills its last block ends before it."""

    def plan(self, batch: AttentionBatch) -> Any:
        size, tables = self.spec.block_size, batch.block_tables.clone()
        for i, length in enumerate(batch.lengths):
            if length % size == 0:
                tables[i, length // size - 1] = 0
        return super().plan(replace(batch, block_tables=tables))


class LongWindow(ReferenceAttention):
    """Sees one token too many behind its window."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, sliding_window=spec.sliding_window and spec.sliding_window + 1))


class Uncapped(ReferenceAttention):
    """Does not know soft caps."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, soft_cap=None))


class CappedBeforeScaling(ReferenceAttention):
    """Caps the products of queries and keys, and scales them afterwards."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, soft_cap=spec.soft_cap and spec.soft_cap * spec.scale))


class Level(ReferenceAttention):
    """Does not know ALiBi."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(replace(spec, alibi=False))


class RoundSlopes(ReferenceAttention):
    """Takes the slopes of a power of two for those of any number of heads."""

    def plan(self, batch: AttentionBatch) -> Any:
        plan, heads = super().plan(batch), self.spec.num_heads
        if plan.slopes is None:
            return plan
        slopes = torch.tensor([2.0 ** (-8 * i / heads) for i in range(1, heads + 1)])
        return replace(plan, slopes=slopes.view(plan.slopes.shape))


USUAL = "prompts, chunks and decodes"
OFF = "elements are off"
MUTANTS: Mapping[type[ReferenceAttention], tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # what is said, cases in which it must be found, and words of which any such case has one; none: any case may be
    Unscaled: (OFF, (USUAL, "a window of 4"), ()),
    KeysForValues: (OFF, ("the first token of one sequence", USUAL), ()),
    PoisonousPadding: ("rows of padding tokens are not finite", (USUAL,), ()),
    WritesBesides: ("wrote into blocks that belong to nobody", (USUAL, "a window of 11"), ()),
    TimesZero: (OFF, ("the first token of one sequence", USUAL), ()),
    ReadsOn: (OFF, ("old numbers in blocks of nobody", "old numbers behind a window"), ("old", "before")),
    Remembers: (OFF, ("blocks that others had before",), ("before",)),
    ABlockShort: (OFF, ("decodes at block edges", "prompts at block edges", USUAL), ()),
    LongWindow: (OFF, ("a window of 1", "a window of 8", "a window of 24"), ("window",)),
    Uncapped: (OFF, ("a soft cap of 0.5", "a soft cap of 2", "a soft cap of 30"), ("soft cap",)),
    CappedBeforeScaling: (OFF, ("a soft cap of 0.5", "a soft cap of 2"), ("soft cap",)),
    Level: (OFF, ("ALiBi, 8 heads on 2", "ALiBi, 3 heads on 1", "ALiBi over long distances"), ("ALiBi",)),
    RoundSlopes: (OFF, ("ALiBi, 12 heads on 4", "ALiBi, 3 heads on 1"), ("ALiBi",)),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_attention_that_is_wrong_is_found_where_it_is(mutant: type[ReferenceAttention]) -> None:
    said, cases, words = MUTANTS[mutant]

    found = wrong(check(Bare(mutant, scheduling=PADDED), CPU, Options()))

    assert set(cases) <= found.keys()
    assert {case: found[case] for case in cases if said not in found[case]} == {}
    assert [case for case in found if words and not any(word in case for word in words)] == []


def test_slopes_are_found_right_where_they_are() -> None:
    found = wrong(check(Bare(RoundSlopes), CPU, Options()))

    assert not {"ALiBi, 8 heads on 2", "ALiBi, 4 heads on 4"} & found.keys()


def test_a_soft_cap_that_bends_alibi_too_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def capped_last(scores: Tensor, soft_cap: float | None, bias: Tensor | None) -> Tensor:
        scores = scores if bias is None else scores + bias
        return scores if soft_cap is None else soft_cap * torch.tanh(scores / soft_cap)

    monkeypatch.setattr("core.reference.attention.bend_scores", capped_last)

    found = wrong(check_attention(Bare(), CPU, "float32", 8))

    assert found
    assert all(case.startswith("ALiBi and a soft cap") for case in found)
