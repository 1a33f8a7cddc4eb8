"""Sequences as a step presents them to attention, and the cache that they live in."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, LayerCache
from core.contracts.kernels import CachedSequences


def paged_batch(
    tables: Sequence[Sequence[int]],
    lengths: Sequence[int],
    new: Sequence[int],
    *,
    block_size: int,
    token_multiple: int,
    torch_device: str,
) -> AttentionBatch:
    """Sequences with these blocks, lengths and counts of new tokens, decodes first, in one step."""
    table = torch.zeros(len(tables), -(-max(lengths) // block_size), dtype=torch.int32)
    slots = torch.zeros(-(-sum(new) // token_multiple) * token_multiple, dtype=torch.int64)
    row = 0
    for i, blocks in enumerate(tables):
        used = -(-lengths[i] // block_size)
        table[i, :used] = torch.tensor(blocks[:used], dtype=torch.int32)
        positions = torch.arange(lengths[i] - new[i], lengths[i])
        slots[row : row + new[i]] = (
            table[i, positions // block_size].long() * block_size + positions % block_size
        )
        row += new[i]
    return AttentionBatch(
        query_lens=tuple(new),
        lengths=tuple(lengths),
        num_decodes=next((i for i, count in enumerate(new) if count != 1), len(new)),
        query_start=torch.tensor([0, *new]).cumsum(0).int().to(torch_device),
        block_tables=table.to(torch_device),
        seq_lengths=torch.tensor(lengths, dtype=torch.int32).to(torch_device),
        slot_mapping=slots.to(torch_device),
    )


def poison(dtype: torch.dtype, *, old: bool = False) -> float:
    """What no slot holds that was written: NaN, or in bytes all ones, which are NaN where they are a scale.

    old  a large number instead, such as another sequence may have left: some ways of reading it hide a NaN
    """
    if old:
        return 30.0 if dtype.is_floating_point else 77
    return math.nan if dtype.is_floating_point else 255 if dtype == torch.uint8 else -1


def poisoned_cache(
    attention: Attention, num_blocks: int, torch_device: str, *, old: bool = False
) -> LayerCache:
    """One layer's cache, all of it poison."""
    layout = attention.layout(num_blocks)

    def filled(shape: tuple[int, ...], name: str) -> Tensor:
        dtype: torch.dtype = getattr(torch, name)
        return torch.full(shape, poison(dtype, old=old), dtype=dtype, device=torch_device)

    keys, values = (filled(*tensor) for tensor in layout.tensors(attention.spec.dtype))
    return LayerCache(keys, values, layout.block_axis)


def kept(rows: Tensor, spec: AttentionSpec) -> Tensor:
    """Keys or values [..., D] as the cache of this spec keeps them, float64."""
    if spec.cache_dtype != "int8":
        return rows.double()
    wide = rows.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / 127
    return torch.where(scale > 0, wide / scale, 0.0).round().double() * scale.double()


def padded(rows: Tensor, count: int, torch_device: str) -> Tensor:
    """Rows of tokens, with rows of zeros behind them, on the device."""
    padding = torch.zeros(count - len(rows), *rows.shape[1:], dtype=rows.dtype)
    return torch.cat((rows, padding)).to(torch_device)


def cached(
    attention: Attention, sequences: CachedSequences, *, token_multiple: int, torch_device: str
) -> tuple[LayerCache, AttentionBatch]:
    """A cache that holds what came before, and the step that follows."""
    size = attention.spec.block_size
    new, lengths = zip(*sequences.sequences, strict=True)
    tables, owned = list[list[int]](), 1
    for length in lengths:
        tables.append(list(range(owned, owned + -(-length // size))))
        owned += len(tables[-1])
    cache = poisoned_cache(attention, owned + 1, torch_device)
    row = 0
    for table, length, count in zip(tables, lengths, new, strict=True):
        context = length - count
        if context:
            before = paged_batch(
                [table],
                [context],
                [context],
                block_size=size,
                token_multiple=token_multiple,
                torch_device=torch_device,
            )
            rows = (sequences.key[row : row + context], sequences.value[row : row + context])
            key, value = (padded(part, len(before.slot_mapping), torch_device) for part in rows)
            attention.write(key, value, cache, attention.plan(before))
            row += context
    batch = paged_batch(
        tables,
        lengths,
        new,
        block_size=size,
        token_multiple=token_multiple,
        torch_device=torch_device,
    )
    return cache, batch
