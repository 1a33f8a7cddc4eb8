"""How many blocks the memory holds, decided before any of it is taken."""

import re
from dataclasses import replace
from typing import Any

import pytest
from engine_model import FULL, window
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from core.config import Settings
from core.contracts.attention import AttentionShape
from core.contracts.model import ModelDescription
from core.contracts.runner import CacheGroup
from core.engine.budget import CachePlan, cache_groups, check_weights, plan_cache
from core.engine.kv_cache import blocks_needed
from core.errors import InsufficientMemory

BLOCK = 1024  # bytes of one block of one group
PLENTY = 2**40


def settings(**changes: Any) -> Settings:
    usual = Settings(
        quantization="none",
        dtype="float32",
        seed=0,
        max_model_len=512,
        max_model_len_asked=False,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        prefill_chunk_size=64,
        block_size=16,
        kv_cache_memory=None,
        kv_cache_dtype="float32",
        enable_prefix_caching=True,
        scheduling_policy="fcfs",
    )
    return replace(usual, **changes)


def plan(
    *groups: CacheGroup,
    block_bytes: list[int] | None = None,
    alignment: int = 1,
    free_bytes: int = PLENTY,
    **changes: Any,
) -> CachePlan:
    groups = groups or (FULL,)
    halves = [(size // 2, size // 2) for size in block_bytes or [BLOCK] * len(groups)]
    return plan_cache(settings(**changes), groups, halves, alignment, free_bytes)


def shape(sliding_window: int | None = None) -> AttentionShape:
    return AttentionShape(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, sliding_window=sliding_window)


class TestGroups:
    @staticmethod
    def groups(*windows: int | None) -> list[tuple[str, tuple[int, ...], int | None]]:
        description = ModelDescription(
            architecture="X",
            vocab_size=1,
            hidden_size=1,
            context=1,
            dtype="float32",
            layers=tuple(shape(w) for w in windows),
            num_parameters=1,
        )
        return [(group.name, group.layers, group.window) for group in cache_groups(description)]

    def test_layers_whose_blocks_live_equally_long_share_one(self) -> None:
        assert self.groups(None, None) == [("full", (0, 1), None)]
        assert self.groups(64, 64) == [("window_64", (0, 1), 64)]
        assert self.groups(None, 64, None, 64, 128) == [
            ("full", (0, 2), None),
            ("window_64", (1, 3), 64),
            ("window_128", (4,), 128),
        ]


class TestWeights:
    def test_weights_that_do_not_fit_are_refused_with_the_numbers(self) -> None:
        check_weights(settings(), 2**20, 2**20)
        says = "the weights take 3.0 MiB in float32 and 1.0 MiB are free; choose a smaller model or dtype"
        with pytest.raises(InsufficientMemory, match=re.escape(says)) as caught:
            check_weights(settings(), 3 * 2**20, 2**20)
        assert caught.value.setting == "dtype"


class TestSize:
    def test_no_more_is_taken_than_every_sequence_could_use_at_once(self) -> None:
        found = plan()  # 4 sequences of 512 tokens, and block 0
        assert found == CachePlan(
            num_blocks=(4 * 32 + 1,), max_model_len=512, total_bytes=129 * BLOCK, num_tokens=2048
        )

    def test_sequences_that_leave_after_their_step_take_what_a_step_holds(self) -> None:
        step = 512 + 64 * 16  # 64 sequences may each leave a block partly filled
        found = plan(whole=True, max_num_seqs=64, max_num_batched_tokens=512)
        assert step <= found.num_tokens < 2 * step
        assert plan(whole=True, max_num_seqs=1, max_num_batched_tokens=512).num_tokens == 512

    def test_what_was_asked_for_is_spent(self) -> None:
        assert plan(kv_cache_memory=50 * BLOCK).num_blocks == (50,)
        assert plan(kv_cache_memory=51 * BLOCK - 1).num_blocks == (50,)

    def test_unasked_half_of_what_is_free_is_spent(self) -> None:
        assert plan(free_bytes=100 * BLOCK).num_blocks == (50,)

    def test_an_engine_beside_others_takes_its_share_of_it(self) -> None:
        assert plan(free_bytes=200 * BLOCK, memory_share=0.25).num_blocks == (25,)
        assert plan(kv_cache_memory=50 * BLOCK, memory_share=0.25).num_blocks == (50,)

    def test_more_than_is_free_is_refused(self) -> None:
        says = r"kv_cache_memory is 51\.0 KiB and 50\.0 KiB are free beside the weights; choose less"
        with pytest.raises(InsufficientMemory, match=says) as caught:
            plan(kv_cache_memory=51 * BLOCK, free_bytes=50 * BLOCK)
        assert caught.value.setting == "kv_cache_memory"
        assert plan(kv_cache_memory=50 * BLOCK, free_bytes=50 * BLOCK).num_blocks == (50,)


class TestContext:
    def test_one_that_nobody_asked_for_shrinks_to_what_fits(self) -> None:
        found = plan(kv_cache_memory=11 * BLOCK)
        assert (found.max_model_len, found.num_blocks) == (160, (11,))
        assert plan(kv_cache_memory=33 * BLOCK).max_model_len == 512
        assert plan(kv_cache_memory=32 * BLOCK).max_model_len == 496

    def test_one_that_was_asked_for_is_refused_with_both_ways_out(self) -> None:
        says = (
            "a KV cache of 11.0 KiB holds 160 tokens and max_model_len is 512; set max_model_len to 160 or less, "
            "or kv_cache_memory to 33.0 KiB or more"
        )
        with pytest.raises(InsufficientMemory, match=re.escape(says)):
            plan(kv_cache_memory=11 * BLOCK, max_model_len_asked=True)
        for way_out in ({"max_model_len": 160}, {"kv_cache_memory": 33 * BLOCK}):
            given_ = {"kv_cache_memory": 11 * BLOCK, "max_model_len_asked": True} | way_out
            assert plan(**given_).max_model_len == given_.get("max_model_len", 512)

    @pytest.mark.parametrize("blocks", [0.5, 1, 1.99])
    def test_a_cache_of_less_than_a_block_is_refused_whoever_chose_it(self, blocks: float) -> None:
        says = "holds 0 tokens, less than one block of 16; set kv_cache_memory to 5.0 KiB or more"
        for asked in (True, False):
            with pytest.raises(InsufficientMemory, match=re.escape(says)):
                plan(kv_cache_memory=int(blocks * BLOCK), max_model_len_asked=asked)
        assert plan(kv_cache_memory=5 * BLOCK).max_model_len == 64

    def test_a_short_context_may_be_less_than_a_block(self) -> None:
        assert plan(max_model_len=8, max_model_len_asked=True, kv_cache_memory=2 * BLOCK).max_model_len == 8


class TestWindows:
    def test_a_window_needs_no_more_than_itself_and_a_step(self) -> None:
        found = plan(FULL, window(32))
        assert found.num_blocks[0] == 4 * 32 + 1
        # 32 + 64 tokens, and a block for edges that straddle
        assert found.num_blocks[1] == 4 * 7 + 1

    def test_a_window_larger_than_the_context_is_full_attention(self) -> None:
        assert plan(window(4096)).num_blocks == plan(FULL).num_blocks

    def test_memory_is_shared_in_proportion_to_what_one_sequence_needs(self) -> None:
        found = plan(FULL, window(32), kv_cache_memory=80 * BLOCK)
        full, windowed = found.num_blocks
        assert (full - 1) / (windowed - 1) == pytest.approx(32 / 7, rel=0.1)
        assert 76 <= full + windowed <= 80


class TestAlignment:
    def test_every_layers_storage_is_a_multiple_of_it(self) -> None:
        # One group of one layer: keys and values of half a block's bytes each.
        found = plan(block_bytes=[200], alignment=192, kv_cache_memory=20_000)
        assert found.num_blocks[0] * 100 % 192 == 0
        assert found.total_bytes == found.num_blocks[0] * 200 <= 20_000

    def test_a_cache_that_alignment_makes_too_large_is_refused(self) -> None:
        with pytest.raises(InsufficientMemory, match="kv_cache_memory"):
            plan(block_bytes=[200], alignment=1 << 20, kv_cache_memory=20_000)


@settings_(max_examples=300)
@given(
    groups=st.sampled_from([(FULL,), (window(24),), (FULL, window(24)), (window(8), FULL, window(100))]),
    sizes=st.lists(st.sampled_from([64, 96, 200, 1024, 12_288]), min_size=3, max_size=3),
    alignment=st.sampled_from([1, 64, 192, 4096]),
    memory=st.one_of(st.integers(1, 60_000), st.integers(1, 3_000_000)),
    max_model_len=st.sampled_from([20, 100, 512]),
    max_num_seqs=st.integers(1, 64),
    block_size=st.sampled_from([8, 16, 24]),
    asked=st.booleans(),
)
def test_any_plan_fits_its_memory_and_holds_the_context_it_promises(
    groups: tuple[CacheGroup, ...],
    sizes: list[int],
    alignment: int,
    memory: int,
    max_model_len: int,
    max_num_seqs: int,
    block_size: int,
    asked: bool,
) -> None:
    sizes = sizes[: len(groups)]
    try:
        found = plan(
            *groups,
            block_bytes=sizes,
            alignment=alignment,
            kv_cache_memory=memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            block_size=block_size,
            max_model_len_asked=asked,
        )
    except InsufficientMemory:
        return
    assert (
        found.total_bytes == sum(n * size for n, size in zip(found.num_blocks, sizes, strict=True)) <= memory
    )
    assert found.max_model_len == max_model_len or not asked
    for count, size, group in zip(found.num_blocks, sizes, groups, strict=True):
        assert count * size // 2 % alignment == 0
        needed = found.max_model_len if group.window is None else min(found.max_model_len, group.window + 64)
        assert count - 1 >= blocks_needed(needed, block_size)
