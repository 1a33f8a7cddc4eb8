"""Attention in C++ against dense attention in float64, where the conformance kit does not go: sizes, groups, pieces."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from core.conformance.compare import difference
from core.conformance.paging import kept, paged_batch, poisoned_cache
from core.contracts.attention import AttentionBatch, AttentionSpec
from core.native.attention import NativeAttention, unsupported
from core.native.library import NativeLibrary
from core.reference.inputs import rounded

DTYPES = ("float32", "bfloat16")
# What keys and values are kept in; None: the dtype.
KEPT = pytest.mark.parametrize("cache_dtype", [None, "int8"])
MIXED = ((1, 1), (1, 40), (1, 17), (7, 30), (33, 33), (2, 100))

pytestmark = pytest.mark.usefixtures("two_threads")


def spec_of(
    dtype: str,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 64,
    *,
    block_size: int = 16,
    window: int | None = None,
    cache_dtype: str | None = None,
) -> AttentionSpec:
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        dtype=dtype,
        block_size=block_size,
        sliding_window=window,
        cache_dtype=cache_dtype,
    )


@dataclass
class Step:
    """A step on a cache that holds NaN wherever no token of a sequence is."""

    query: Tensor
    batch: AttentionBatch
    attention: NativeAttention
    expected: Tensor

    def __post_init__(self) -> None:
        self.cache = poisoned_cache(self.attention, 1 + int(self.batch.block_tables.max()), "cpu")

    def attend(self) -> Tensor:
        return self.attention.attend(self.query, self.cache, self.attention.plan(self.batch))

    def problem(self) -> str:
        return difference(self.attend(), self.expected, rounded(8)[self.attention.spec.dtype])


def step_of(library: NativeLibrary, spec: AttentionSpec, sequences: tuple[tuple[int, int], ...]) -> Step:
    """(new tokens, length) each. Blocks are handed out in a random order."""
    generator, dtype = torch.Generator().manual_seed(7), getattr(torch, spec.dtype)
    widths = [-(-length // spec.block_size) for _, length in sequences]
    order = [int(i) + 1 for i in torch.randperm(sum(widths), generator=generator)]
    tables = [[order.pop() for _ in range(width)] for width in widths]
    lengths, new = [length for _, length in sequences], [count for count, _ in sequences]
    batch = paged_batch(
        tables, lengths, new, block_size=spec.block_size, token_multiple=1, torch_device="cpu"
    )

    def normal(heads: int, count: int) -> Tensor:
        return torch.randn(count, heads, spec.head_dim, generator=generator).to(dtype)

    keys, values = ([normal(spec.num_kv_heads, length) for length in lengths] for _ in range(2))
    query = normal(spec.num_heads, sum(new))
    rows = zip(query.split(new), keys, values, strict=True)
    step = Step(query, batch, NativeAttention(spec, library), torch.cat([dense(*row, spec) for row in rows]))
    whole = paged_batch(
        tables, lengths, lengths, block_size=spec.block_size, token_multiple=1, torch_device="cpu"
    )
    step.attention.write(torch.cat(keys), torch.cat(values), step.cache, step.attention.plan(whole))
    return step


def dense(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
    group, length = spec.num_heads // spec.num_kv_heads, len(key)
    key, value = (kept(tensor, spec).repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * spec.scale
    distance = torch.arange(length - len(query), length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (spec.sliding_window or length + 1))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), value)


@KEPT
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", range(16, 257, 16))
def test_every_multiple_of_16_is_a_head_size(
    library: NativeLibrary, head_dim: int, dtype: str, cache_dtype: str | None
) -> None:
    spec = spec_of(dtype, head_dim=head_dim, cache_dtype=cache_dtype)
    assert step_of(library, spec, MIXED).problem() == ""


@KEPT
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 2), (6, 2), (14, 2), (16, 2), (20, 1), (200, 1)])
def test_any_number_of_query_heads_shares_a_key(
    library: NativeLibrary, heads: int, kv_heads: int, dtype: str, cache_dtype: str | None
) -> None:
    spec = spec_of(dtype, heads, kv_heads, 32, cache_dtype=cache_dtype)
    assert step_of(library, spec, MIXED).problem() == ""


@KEPT
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 48, 128])
@pytest.mark.parametrize("window", [None, 1, 5, 29])
def test_blocks_of_every_size_and_windows_go_together(
    library: NativeLibrary, window: int | None, block_size: int, dtype: str, cache_dtype: str | None
) -> None:
    spec = spec_of(dtype, 3, 1, 16, block_size=block_size, window=window, cache_dtype=cache_dtype)
    assert step_of(library, spec, MIXED).problem() == ""


@KEPT
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 300, 700])
def test_long_sequences_are_cut_into_pieces_and_put_together_again(
    library: NativeLibrary, window: int | None, dtype: str, cache_dtype: str | None
) -> None:
    sequences = ((1, 255), (1, 256), (1, 257), (1, 1000), (1, 513), (130, 900), (3, 700))
    spec = spec_of(dtype, 9, 3, 64, window=window, cache_dtype=cache_dtype)
    assert step_of(library, spec, sequences).problem() == ""


@KEPT
@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_threads_nor_neighbours_change_a_result(
    library: NativeLibrary, dtype: str, cache_dtype: str | None
) -> None:
    sequences = ((1, 700), (1, 30), (60, 300), (200, 200))
    step = step_of(library, spec_of(dtype, 9, 3, 64, cache_dtype=cache_dtype), sequences)
    together = step.attend()
    torch.set_num_threads(1)
    assert torch.equal(step.attend(), together)

    batch = step.batch
    for i, (new, length) in enumerate(sequences):
        row = slice(int(batch.query_start[i]), int(batch.query_start[i]) + new)
        alone = AttentionBatch(
            query_lens=(new,),
            lengths=(length,),
            num_decodes=int(new == 1),
            query_start=torch.tensor([0, new], dtype=torch.int32),
            block_tables=batch.block_tables[i : i + 1],
            seq_lengths=batch.seq_lengths[i : i + 1],
            slot_mapping=batch.slot_mapping[row],
        )
        result = step.attention.attend(step.query[row], step.cache, step.attention.plan(alone))
        assert torch.equal(result, together[row]), f"sequence {i}"


def test_large_scores_do_not_overflow(library: NativeLibrary) -> None:
    step = step_of(library, spec_of("float32"), MIXED)
    step.query *= 1e4
    assert bool(step.attend().isfinite().all())


@KEPT
def test_a_token_that_is_not_finite_spoils_its_own_sequence_alone(
    library: NativeLibrary, cache_dtype: str | None
) -> None:
    step = step_of(library, spec_of("bfloat16", cache_dtype=cache_dtype), MIXED)
    starts = step.batch.query_start.tolist()
    step.query[[starts[1], starts[4] + 5]] = math.nan
    spoiled = step.attend().isnan().flatten(1).any(dim=1)
    assert spoiled.nonzero()[:, 0].tolist() == [starts[1], starts[4] + 5]


def test_queries_may_lie_in_a_wider_projection(library: NativeLibrary) -> None:
    step = step_of(library, spec_of("bfloat16"), MIXED)
    expected, wide = step.attend(), torch.zeros(len(step.query), 10, 64, dtype=torch.bfloat16)
    wide[:, 2:8] = step.query
    step.query = wide[:, 2:8]
    assert torch.equal(step.attend(), expected)


def test_what_cannot_be_served_is_refused_with_the_reason() -> None:
    assert unsupported(spec_of("float16")) == "compiled for float32 and bfloat16, not float16"
    assert "head_dim is 72" in str(unsupported(spec_of("float32", head_dim=72)))
    assert "head_dim is 272" in str(unsupported(spec_of("float32", head_dim=272)))
    assert "block_size is 8" in str(unsupported(spec_of("float32", block_size=8)))
    assert unsupported(spec_of("float32", cache_dtype="fp8")) == (
        "keeps keys and values in float32 or int8, not fp8"
    )
