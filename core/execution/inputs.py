"""From a batch's counts to the tensors a model reads, without a Python loop per token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.contracts.attention import AttentionBatch
from core.contracts.runner import Batch, ScheduledSequence
from core.contracts.state import StateBatch

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A step's tensors on the device.

    token_ids, positions  [num_tokens], int64, padding included
    groups                per cache group
    sampled               indices into the batch of the sequences that sample or are pooled, in order
    rows                  [num_rows], int64: the last token of each of those (or the tokens that are pooled), then the
                          prompt positions whose next token's log-probability was asked for
    prompt_rows           (index into the batch, how many rows) in the order they follow in `rows`
    segments              [num_tokens], int64, as in `StepInputs`
    """

    token_ids: Tensor
    positions: Tensor
    groups: tuple[AttentionBatch, ...]
    sampled: tuple[int, ...]
    rows: Tensor
    prompt_rows: tuple[tuple[int, int], ...]
    segments: Tensor | None


def prepare(
    batch: Batch, *, block_size: int, token_multiple: int, device: str, pooled: str | None = None
) -> Prepared:
    """Flatten a batch. Padding tokens, id 0 at position 0, follow the real ones and are written to block 0.

    pooled  `Pooling.tokens` of a model that pools
    """
    parts = batch.sequences
    starts = np.array([p.start for p in parts], dtype=np.int64)
    counts = np.array([p.num_tokens for p in parts], dtype=np.int64)
    query_start = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_start[1:])
    padded = -(-batch.num_tokens // token_multiple) * token_multiple
    token_ids, positions = np.zeros(padded, dtype=np.int64), np.zeros(padded, dtype=np.int64)
    _fill_token_ids(token_ids, parts, batch.num_decodes, query_start)
    owner = np.repeat(np.arange(len(parts)), counts)
    positions[: batch.num_tokens] = real = np.arange(batch.num_tokens) + (starts - query_start[:-1])[owner]
    lengths = starts + counts
    sampled = tuple(i for i, part in enumerate(parts) if part.samples)
    rows, prompt_rows = _rows(parts, sampled, query_start, pooled)

    def group(g: int) -> AttentionBatch:
        tables = _block_tables(parts, g, lengths, block_size)
        slots, blocks = np.zeros(padded, dtype=np.int64), tables[owner, real // block_size].astype(np.int64)
        slots[: batch.num_tokens] = blocks * block_size + real % block_size
        return AttentionBatch(
            query_lens=tuple(counts.tolist()),
            lengths=tuple(lengths.tolist()),
            num_decodes=batch.num_decodes,
            query_start=_tensor(query_start.astype(np.int32), device),
            block_tables=_tensor(tables, device),
            seq_lengths=_tensor(lengths.astype(np.int32), device),
            slot_mapping=_tensor(slots, device),
        )

    return Prepared(
        token_ids=_tensor(token_ids, device),
        positions=_tensor(positions, device),
        groups=tuple(group(g) for g in range(len(parts[0].blocks))),
        sampled=sampled,
        rows=_tensor(rows, device),
        prompt_rows=prompt_rows,
        segments=_segments(parts, query_start, padded, device),
    )


def state_batch(batch: AttentionBatch, block_size: int) -> StateBatch:
    """What the same step asks of layers that keep a state, in blocks of the same table."""
    tables, ends = batch.block_tables.long(), batch.seq_lengths.long()
    starts = ends - batch.query_start.diff()

    def block_of(tokens: Tensor) -> Tensor:
        return tables.gather(1, (tokens // block_size)[:, None])[:, 0]

    return StateBatch(
        query_lens=batch.query_lens,
        query_start=batch.query_start,
        read_blocks=torch.where(starts > 0, block_of((starts - 1).clamp(min=0)), 0),
        write_blocks=block_of(ends - 1),
    )


def _tensor(values: NDArray[np.generic], device: str) -> Tensor:
    return torch.from_numpy(values).to(device)  # pyright: ignore[reportUnknownMemberType]


def _fill_token_ids(
    out: Ints, parts: Sequence[ScheduledSequence], num_decodes: int, query_start: Ints
) -> None:
    out[:num_decodes] = [part.token_ids[part.start] for part in parts[:num_decodes]]
    for i in range(num_decodes, len(parts)):
        part = parts[i]
        out[query_start[i] : query_start[i + 1]] = part.token_ids[part.start : part.start + part.num_tokens]


def _block_tables(
    parts: Sequence[ScheduledSequence], g: int, lengths: Ints, block_size: int
) -> NDArray[np.int32]:
    """[num_seqs, max_blocks], zero beyond each length."""
    tables = np.zeros((len(parts), -(-int(lengths.max()) // block_size)), dtype=np.int32)
    for i, part in enumerate(parts):
        blocks = part.blocks[g]
        tables[i, : len(blocks)] = np.frombuffer(blocks, dtype=np.int32)
    return tables


def wanted_prompt_positions(part: ScheduledSequence) -> int:
    """How many of a part's leading tokens are prompt tokens whose successor's log-probability is wanted."""
    if part.params.prompt_logprobs is None:
        return 0
    return max(0, min(part.start + part.num_tokens, part.num_prompt - 1) - part.start)


def _segments(
    parts: Sequence[ScheduledSequence], query_start: Ints, padded: int, device: str
) -> Tensor | None:
    if all(part.second is None for part in parts):
        return None
    segments = np.zeros(padded, dtype=np.int64)
    for i, part in enumerate(parts):
        if part.second is not None:
            segments[query_start[i] + max(0, part.second - part.start) : query_start[i + 1]] = 1
    return _tensor(segments, device)


def _rows(
    parts: Sequence[ScheduledSequence], sampled: Sequence[int], query_start: Ints, pooled: str | None
) -> tuple[Ints, tuple[tuple[int, int], ...]]:
    chosen = np.array(sampled, dtype=np.int64)
    first, end = query_start[chosen], query_start[chosen + 1]
    if pooled == "mean":
        first = first + np.array([parts[i].skip for i in sampled], dtype=np.int64)
        rows: list[Ints] = [np.arange(*ends) for ends in zip(first, end, strict=True)] or [first]
    else:
        rows = [first if pooled == "first" else end - 1]
    wanted = [(i, wanted_prompt_positions(part)) for i, part in enumerate(parts)]
    prompt_rows = tuple((i, count) for i, count in wanted if count)
    rows += [np.arange(query_start[i], query_start[i] + count) for i, count in prompt_rows]
    return np.concatenate(rows).astype(np.int64), prompt_rows
