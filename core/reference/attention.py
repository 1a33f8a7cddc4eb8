"""Paged attention in plain torch: exact softmax in float32.

A quantised cache is bytes, [num_blocks, block_size, num_kv_heads, head_dim + 4]: the numbers of a key or value, and
behind them their scale. It is multiplied out as it is gathered.

Decodes of a step are gathered, padded to the longest, and multiplied together; prompts go one by one. What a
sequence must not see (other blocks, slots not written yet, blocks that a window left behind) is never
gathered: padding repeats the sequence's own newest slot and is masked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from core.contracts.attention import (
    Attention,
    AttentionBatch,
    AttentionSpec,
    CacheLayout,
    LayerCache,
    alibi_slopes,
)

_SCALE_BYTES = 4
_AT_ONCE = 2**19  # elements of gathered keys, or of scores, that are worked on together: they stay in a cache


def quantize_rows(rows: Tensor) -> Tensor:
    """[..., D] -> bytes [..., D + 4]: what `AttentionSpec.cache_dtype` says of int8."""
    wide = rows.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / 127
    numbers = (wide / scale).round().clamp(-127, 127).nan_to_num(0.0).to(torch.int8)
    return torch.cat((numbers.view(torch.uint8), scale.view(torch.uint8)), dim=-1)


def dequantized_rows(stored: Tensor) -> Tensor:
    """Bytes [..., D + 4] -> [..., D], float32."""
    numbers, scale = stored.split_with_sizes((stored.shape[-1] - _SCALE_BYTES, _SCALE_BYTES), dim=-1)
    return numbers.contiguous().view(torch.int8).float() * scale.contiguous().view(torch.float32)


def bend_scores(scores: Tensor, soft_cap: float | None, bias: Tensor | None) -> Tensor:
    """Scaled scores, overwritten: under the soft cap, then with ALiBi's bias, which broadcasts to them."""
    if soft_cap is not None:
        scores = scores.div_(soft_cap).tanh_().mul_(soft_cap)
    return scores if bias is None else scores.add_(bias)


@dataclass(frozen=True, slots=True)
class _Part:
    """B sequences with Q new tokens each, attended to together.

    rows      the part's rows among the step's tokens, B * Q of them
    slots     [B, L], int64: the slots of the tokens that any of them sees
    hidden    [B, 1, Q, L], bool: what a token must not see
    distance  [B, 1, Q, L], float32: position of a key less that of the token, for ALiBi; None without it
    """

    rows: slice
    slots: Tensor
    hidden: Tensor
    distance: Tensor | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """slopes: [Hkv, Hq / Hkv, 1, 1], float32, for ALiBi; None without it."""

    slot_mapping: Tensor
    parts: tuple[_Part, ...]
    slopes: Tensor | None


class ReferenceAttention(Attention):
    """Attention for layers of one spec, on any device that torch has."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    def layout(self, num_blocks: int) -> CacheLayout:
        shape = (num_blocks, self.spec.block_size, self.spec.num_kv_heads)
        stored, dtype = self.spec.head_dim, None
        if self.spec.quantized:
            stored, dtype = stored + _SCALE_BYTES, "uint8"
        values = None if self.spec.latent is None else (*shape, 0)
        return CacheLayout((*shape, stored), 0, dtype, values)

    def plan(self, batch: AttentionBatch) -> _Plan:
        slopes = None
        if self.spec.alibi:
            each = torch.tensor(alibi_slopes(self.spec.num_heads), dtype=torch.float32)
            slopes = each.view(self.spec.num_kv_heads, -1, 1, 1).to(batch.block_tables.device)
        return _Plan(batch.slot_mapping, tuple(self._parts(batch)), slopes)

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: _Plan) -> None:
        kept = ((cache.keys, key), (cache.values, value))
        for storage, new in kept if self.spec.latent is None else kept[:1]:
            stored = quantize_rows(new) if self.spec.quantized else new
            self._tokens(storage).index_copy_(0, plan.slot_mapping, stored)

    def attend(self, query: Tensor, cache: LayerCache, plan: _Plan) -> Tensor:
        shape, latent = (*query.shape[:2], self.spec.value_dim), self.spec.latent
        output = torch.zeros(shape, dtype=query.dtype, device=query.device)
        for part in plan.parts:
            slots = part.slots.flatten()
            keys = self._gather(self._tokens(cache.keys), slots)
            values = keys[..., :latent] if latent else self._gather(self._tokens(cache.values), slots)
            output[part.rows] = self._attend(query[part.rows], keys, values, part, plan.slopes)
        return output

    def _tokens(self, storage: Tensor) -> Tensor:
        """[num_blocks, block_size, Hkv, D] -> [num_slots, Hkv, D], the same memory."""
        return storage.view(-1, *storage.shape[2:])

    def _gather(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """[num_slots, Hkv, D] as stored -> [len(slots), Hkv, D], float32."""
        chosen = tokens.index_select(0, slots)
        return dequantized_rows(chosen) if self.spec.quantized else chosen.float()

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, part: _Part, slopes: Tensor | None
    ) -> Tensor:
        """query [B * Q, Hq, D], keys [B * L, Hkv, D] and values [B * L, Hkv, Dv] float32 -> [B * Q, Hq, Dv]."""
        spec, (batch, _, count, width) = self.spec, part.hidden.shape
        group = spec.num_heads // spec.num_kv_heads
        wide = (query.float() * spec.scale).view(batch, count, spec.num_kv_heads, group, spec.head_dim)
        shape = (*wide.shape[:-1], spec.value_dim)
        output = torch.empty(shape, dtype=wide.dtype, device=wide.device)
        for head in range(spec.num_kv_heads):  # one head is a strided matrix that a product takes uncopied
            rows = wide[:, :, head].transpose(1, 2).reshape(batch, group * count, spec.head_dim)
            key, value = (tensor[:, head].view(batch, width, -1) for tensor in (keys, values))
            scores = torch.bmm(rows, key.transpose(1, 2)).view(batch, group, count, width)
            bias = None if slopes is None or part.distance is None else slopes[head] * part.distance
            scores = bend_scores(scores, spec.soft_cap, bias)
            weights = torch.softmax(scores.masked_fill_(part.hidden, -torch.inf), dim=-1)
            attended = torch.bmm(weights.view(batch, group * count, width), value)
            output[:, :, head] = attended.view(batch, group, count, spec.value_dim).transpose(1, 2)
        return output.view(*query.shape[:2], spec.value_dim).to(query.dtype)

    def _parts(self, batch: AttentionBatch) -> Iterator[_Part]:
        starts = [0, *accumulate(batch.query_lens)]
        for first, last in self._decode_runs(batch):
            yield self._part(batch, slice(first, last), 0, 1, starts[first])
        for i in range(batch.num_decodes, len(batch.lengths)):
            count = batch.query_lens[i]
            group = self.spec.num_heads // self.spec.num_kv_heads
            step = max(1, _AT_ONCE // (group * batch.lengths[i]))
            for offset in range(0, count, step):
                yield self._part(
                    batch, slice(i, i + 1), offset, min(step, count - offset), starts[i] + offset
                )

    def _decode_runs(self, batch: AttentionBatch) -> Iterator[tuple[int, int]]:
        """Decodes that are attended to together: neighbours whose padded keys stay within bounds."""
        first = longest = 0
        for i in range(batch.num_decodes):
            longest = max(longest, batch.lengths[i])
            if (
                i > first
                and longest * (i + 1 - first) * self.spec.num_kv_heads * self.spec.head_dim > _AT_ONCE
            ):
                yield first, i
                first, longest = i, batch.lengths[i]
        if first < batch.num_decodes:
            yield first, batch.num_decodes

    def _reach(self, length: int) -> tuple[int, int]:
        """How many tokens before itself, and after itself, a token of a sequence of this length sees."""
        window = self.spec.sliding_window
        if self.spec.causal:
            return (length if window is None else window - 1), 0
        return (length, length) if window is None else (window // 2, window // 2)

    def _part(self, batch: AttentionBatch, sequences: slice, offset: int, count: int, row: int) -> _Part:
        """`count` new tokens of each of these sequences, from its new token `offset` on."""
        device, size = batch.block_tables.device, self.spec.block_size
        context = [
            n - q + offset for n, q in zip(batch.lengths[sequences], batch.query_lens[sequences], strict=True)
        ]
        before, after = self._reach(max(batch.lengths[sequences]))
        ends = [
            min(length, past + count + after)
            for past, length in zip(context, batch.lengths[sequences], strict=True)
        ]
        oldest = [max(0, past - before) for past in context]
        width = max(end - start for end, start in zip(ends, oldest, strict=True))
        newest = torch.tensor(context, device=device)[:, None] + torch.arange(count, device=device)  # [B, Q]
        seen = torch.tensor(oldest, device=device)[:, None] + torch.arange(width, device=device)  # [B, L]
        last = torch.tensor(ends, device=device)[:, None] - 1  # [B, 1]
        ahead = seen[:, None] - newest[:, :, None]  # [B, Q, L]
        hidden = (ahead > after) | (ahead < -before) | (seen > last)[:, None]
        seen = torch.minimum(seen, last)
        slots = batch.block_tables[sequences].gather(1, seen // size).long() * size + seen % size
        rows = slice(row, row + count * len(context))
        return _Part(rows, slots, hidden[:, None], ahead[:, None].float() if self.spec.alibi else None)
