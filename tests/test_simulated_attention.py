"""The simulated accelerator's attention: strict about what it is given, and about reading what is dead."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from core.contracts.attention import AttentionBatch, AttentionSpec, LayerCache
from core.contracts.platform import Device, SchedulingLimits
from core.errors import ContractViolation
from platforms.simulated.attention import StrictAttention
from platforms.simulated.memory import StrictMemory
from platforms.simulated.options import Options

DEVICE = Device(name="simulated accelerator", torch_device="cpu")
SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.35, dtype="float32", block_size=12)
LIMITS = SchedulingLimits(separate_steps=True, token_multiple=8)


def blank_cache(fill: float = 0.0) -> LayerCache:
    shape = (8, SPEC.block_size, SPEC.num_kv_heads, SPEC.head_dim)
    return LayerCache(torch.full(shape, fill), torch.full(shape, fill), 0)


def prompt_batch(**changes: Any) -> AttentionBatch:
    """One sequence of 20 tokens in blocks 3 and 1, of which the last 8 are new; no padding."""
    batch = AttentionBatch(
        query_lens=(8,),
        lengths=(20,),
        num_decodes=0,
        query_start=torch.tensor([0, 8], dtype=torch.int32),
        block_tables=torch.tensor([[3, 1, 0]], dtype=torch.int32),
        seq_lengths=torch.tensor([20], dtype=torch.int32),
        slot_mapping=torch.arange(12, 20),
    )
    return replace(batch, **changes)


def run(
    batch: AttentionBatch, cache: LayerCache, spec: AttentionSpec = SPEC, **given: torch.Tensor
) -> torch.Tensor:
    attention = StrictAttention(spec, DEVICE, LIMITS)
    count = len(batch.slot_mapping)
    query = given.get("query", torch.randn(count, 4, 8))
    key, value = given.get("key", torch.randn(count, 2, 8)), given.get("value", torch.randn(count, 2, 8))
    plan = attention.plan(batch)
    attention.write(key, value, cache, plan)
    return attention.attend(query, cache, plan)


def test_attention_serves_a_batch_that_keeps_the_contract() -> None:
    assert run(prompt_batch(), blank_cache()).isfinite().all()


def mixed_batch() -> dict[str, Any]:
    return {
        "query_lens": (1, 7),
        "lengths": (12, 7),
        "num_decodes": 1,
        "query_start": torch.tensor([0, 1, 8], dtype=torch.int32),
        "block_tables": torch.tensor([[3], [1]], dtype=torch.int32),
        "seq_lengths": torch.tensor([12, 7], dtype=torch.int32),
        "slot_mapping": torch.tensor([47, *range(12, 19)]),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot_mapping": torch.arange(24, 32)}, "slot 24 is written for position 12 of sequence 0"),
        ({"slot_mapping": torch.arange(12, 21)}, "has 9 rows; expected padding to a multiple of 8"),
        (
            {"slot_mapping": torch.arange(12, 20).int()},
            "slot_mapping is .*expected 1 dense axes of torch.int64",
        ),
        ({"slot_mapping": torch.cat((torch.arange(12, 20), torch.full((8,), 50)))}, "outside block 0"),
        (
            {"block_tables": torch.tensor([[3, 0, 0]], dtype=torch.int32)},
            "lacks blocks for positions 0 to 19",
        ),
        ({"block_tables": torch.tensor([[3, 1, 4]], dtype=torch.int32)}, "is not 0 past its length of 20"),
        ({"block_tables": torch.tensor([[3, 1, 0]] * 2, dtype=torch.int32)}, "2 rows for 1 sequences"),
        ({"seq_lengths": torch.tensor([19], dtype=torch.int32)}, r"seq_lengths is \[19\] for lengths \[20\]"),
        ({"query_start": torch.tensor([0, 7], dtype=torch.int32)}, r"query_start is \[0, 7\]"),
        ({"query_lens": (21,)}, "has 21 new tokens and a length of 20"),
        ({"num_decodes": 1}, "sequence 0 of 1 decodes has 8 new tokens"),
        (mixed_batch(), "mixes 1 decodes with 1 prompts"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractViolation, match=message):
        run(prompt_batch(**changes), blank_cache())


def test_two_tokens_never_write_one_slot() -> None:
    sharing = prompt_batch(
        query_lens=(4, 4),
        lengths=(20, 20),
        query_start=torch.tensor([0, 4, 8], dtype=torch.int32),
        block_tables=torch.tensor([[3, 1], [4, 1]], dtype=torch.int32),
        seq_lengths=torch.tensor([20, 20], dtype=torch.int32),
        slot_mapping=torch.tensor([16, 17, 18, 19] * 2),
    )

    with pytest.raises(ContractViolation, match="two tokens write the same slot"):
        run(sharing, blank_cache())


def test_reading_a_discarded_block_is_caught_and_named() -> None:
    cache = blank_cache()
    StrictMemory(DEVICE, Options()).discard_blocks([cache], [3])

    with pytest.raises(
        ContractViolation, match="sequence 0 reads position 0 from slot 0 of block 3, which was"
    ):
        run(prompt_batch(), cache)


def test_poison_behind_a_window_and_past_a_length_is_never_read() -> None:
    cache = blank_cache(fill=float("nan"))
    cache.keys[1], cache.values[1] = 0.0, 0.0
    cache.keys[1, 8:], cache.values[1, 8:] = float("nan"), float("nan")
    left_behind = prompt_batch(
        query_lens=(1,),
        num_decodes=1,
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        block_tables=torch.tensor([[0, 1]], dtype=torch.int32),
        slot_mapping=torch.tensor([19, 0, 0, 0, 0, 0, 0, 0]),
    )

    output = run(left_behind, cache, replace(SPEC, sliding_window=8))

    assert output.isfinite().all()


def test_a_model_that_overflows_by_itself_is_not_blamed_on_the_cache() -> None:
    cache = blank_cache()
    cache.values[3] = torch.nan  # as the model stored it in a step before

    assert run(prompt_batch(), blank_cache(), query=torch.full((8, 4, 8), torch.inf)).isnan().any()
    assert run(prompt_batch(), cache).isnan().any()


def test_every_sequence_that_is_not_finite_is_searched_for_poison() -> None:
    cache = blank_cache()
    StrictMemory(DEVICE, Options()).discard_blocks([cache], [4])
    decodes = prompt_batch(
        query_lens=(1, 1),
        lengths=(13, 13),
        num_decodes=2,
        query_start=torch.tensor([0, 1, 2], dtype=torch.int32),
        block_tables=torch.tensor([[3, 1], [4, 2]], dtype=torch.int32),
        seq_lengths=torch.tensor([13, 13], dtype=torch.int32),
        slot_mapping=torch.tensor([12, 24, 0, 0, 0, 0, 0, 0]),
    )
    overflowing = torch.zeros(8, 4, 8)
    overflowing[0] = torch.inf

    with pytest.raises(ContractViolation, match="sequence 1 reads position 0 from slot 0 of block 4"):
        run(decodes, cache, query=overflowing)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": torch.zeros(8, 2, 8)}, r"query is \[8, 2, 8\].*expected \[8, 4, 8\]"),
        ({"key": torch.zeros(7, 2, 8)}, r"key is \[7, 2, 8\]"),
        ({"value": torch.zeros(8, 2, 8, dtype=torch.bfloat16)}, "value is .*bfloat16.*expected .* float32"),
        ({"key": torch.zeros(8, 8, 2).transpose(1, 2)}, "the heads of key are not dense"),
    ],
)
def test_tensors_outside_the_contract_are_refused(given: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ContractViolation, match=message):
        run(prompt_batch(), blank_cache(), **given)


def test_a_cache_that_is_too_small_for_its_slots_is_refused() -> None:
    small = blank_cache()
    small = LayerCache(small.keys[:1], small.values[:1], 0)

    with pytest.raises(ContractViolation, match="slot 19 is outside a cache of 1 blocks"):
        run(prompt_batch(), small)
