"""Paged attention on torch operations: for what the C++ kernels do not serve, and where there are none.

Keys and values lie head by head, [num_kv_heads, num_blocks, block_size, head_dim], so that gathering whole
blocks yields matrices that a batched product takes as they are. Decodes are gathered and multiplied together,
the query heads of a group as the rows of one matrix (torch's own grouped attention is many times slower in
bfloat16). Prompts go through torch's flash kernel, one sequence at a time; soft caps and ALiBi, which it does not
have, are computed in float32 around plain products.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.attention import (
    Attention,
    AttentionBatch,
    AttentionSpec,
    CacheLayout,
    LayerCache,
    alibi_slopes,
)
from core.reference.attention import bend_scores

_WASTE = 1.25  # decodes share a bucket while padding them to the longest costs at most this factor
_AT_ONCE = 2**22  # scores of a prompt that are bent together


@dataclass(slots=True)
class _Decodes:
    """Decodes of similar length.

    rows      [B], int64: their rows in the batch
    blocks    [B * nb], int64: blocks to gather
    index     [Hkv * B * nb], int64: the same, of a storage seen as [Hkv * num_blocks, ...]; made by the first layer
    hidden    [1, B, 1, L], bool: gathered tokens that a sequence must not see
    distance  [1, B, 1, L], int64: their positions less that of the new token
    garbage   [G], int64: those tokens as rows of [Hkv * B * L, D], to be zeroed before they meet a weight of 0
    """

    rows: Tensor
    blocks: Tensor
    hidden: Tensor
    distance: Tensor
    garbage: Tensor
    index: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One sequence's chunk: its rows, the blocks it sees, how much of them, and the mask of a partial view."""

    start: int
    end: int
    blocks: Tensor
    skipped: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where tokens are written, how decodes are gathered, and each prompt."""

    batch: AttentionBatch
    decodes: tuple[_Decodes, ...]
    prompts: tuple[_Prompt, ...]


def unsupported(spec: AttentionSpec) -> str | None:
    """The reason why layers of this spec cannot be served, or None when they can."""
    if spec.quantized:
        return f"its torch operations keep no {spec.cache_dtype}"
    if not spec.causal or spec.latent is not None:
        return "its torch operations are of causal attention, with values of their own"
    return None


class TorchAttention(Attention):
    """Attention for layers of one spec."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self.group = spec.num_heads // spec.num_kv_heads
        self._slopes = torch.tensor(alibi_slopes(spec.num_heads), dtype=torch.float32) if spec.alibi else None
        self._bends = spec.alibi or spec.soft_cap is not None

    def layout(self, num_blocks: int) -> CacheLayout:
        return CacheLayout((self.spec.num_kv_heads, num_blocks, self.spec.block_size, self.spec.head_dim), 1)

    def plan(self, batch: AttentionBatch) -> _Plan:
        n = batch.num_decodes
        starts = [0]
        for count in batch.query_lens:
            starts.append(starts[-1] + count)
        return _Plan(
            batch=batch,
            decodes=tuple(self._plan_decodes(batch, rows) for rows in _buckets(batch.lengths[:n])),
            prompts=tuple(self._plan_prompt(batch, i, starts[i]) for i in range(n, len(batch.lengths))),
        )

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: _Plan) -> None:
        shape = (self.spec.num_kv_heads, -1, self.spec.head_dim)
        cache.keys.view(shape).index_copy_(1, plan.batch.slot_mapping, key.transpose(0, 1))
        cache.values.view(shape).index_copy_(1, plan.batch.slot_mapping, value.transpose(0, 1))

    def attend(self, query: Tensor, cache: LayerCache, plan: _Plan) -> Tensor:
        output = torch.empty(query.shape, dtype=query.dtype)
        for decodes in plan.decodes:
            output[decodes.rows] = self._decode(query[decodes.rows], cache, decodes)
        for prompt in plan.prompts:
            output[prompt.start : prompt.end] = self._prompt(query[prompt.start : prompt.end], cache, prompt)
        return output

    def _plan_decodes(self, batch: AttentionBatch, rows: list[int]) -> _Decodes:
        spec, size = self.spec, self.spec.block_size
        chosen = torch.tensor(rows)
        lengths = torch.tensor([batch.lengths[i] for i in rows])
        first = 0
        if spec.sliding_window is not None:
            first = max(0, int(lengths.min()) - spec.sliding_window) // size
        width = -(-int(lengths.max()) // size)
        tables = batch.block_tables[chosen, first:width].long()  # [B, nb]
        positions = torch.arange(first * size, width * size)
        distance = positions - (lengths[:, None] - 1)  # [B, L]
        hidden = distance > 0
        if spec.sliding_window is not None:
            hidden |= distance <= -spec.sliding_window
        heads = torch.arange(spec.num_kv_heads)
        garbage = torch.nonzero(hidden.flatten())[:, 0] + heads[:, None] * hidden.numel()
        shape = (1, len(rows), 1, -1)
        return _Decodes(chosen, tables.flatten(), hidden.view(shape), distance.view(shape), garbage.flatten())

    def _decode(self, query: Tensor, cache: LayerCache, decodes: _Decodes) -> Tensor:
        spec, (batch, length) = self.spec, (decodes.hidden.shape[1], decodes.hidden.shape[3])
        keys = self._gather(cache.keys, decodes)
        values = self._gather(cache.values, decodes)
        values.view(-1, spec.head_dim).index_fill_(0, decodes.garbage, 0.0)
        grouped = (
            (query * spec.scale).view(batch, spec.num_kv_heads, self.group, spec.head_dim).transpose(0, 1)
        )
        grouped = grouped.reshape(-1, self.group, spec.head_dim)  # [Hkv * B, G, D]
        scores = torch.bmm(grouped, keys.transpose(1, 2)).view(spec.num_kv_heads, batch, self.group, length)
        if self._bends:
            scores = self._bent(scores.float(), decodes.distance, (spec.num_kv_heads, 1, self.group, 1))
        # Softmax accumulates in float32 whatever it is given; the products round to the model dtype anyway.
        weights = torch.softmax(scores.masked_fill_(decodes.hidden, -torch.inf), dim=-1)
        weights = weights.to(values.dtype).view(-1, self.group, length)
        attended = torch.bmm(weights, values).view(spec.num_kv_heads, batch, self.group, spec.head_dim)
        return attended.transpose(0, 1).reshape(batch, spec.num_heads, spec.head_dim)

    def _gather(self, storage: Tensor, decodes: _Decodes) -> Tensor:
        """Whole blocks -> [Hkv * B, L, D]. Selecting rows of a flat view is three times faster than axis 1."""
        if decodes.index is None:
            offsets = torch.arange(self.spec.num_kv_heads) * storage.shape[1]
            decodes.index = (offsets[:, None] + decodes.blocks).flatten()
        flat = storage.view(-1, self.spec.block_size * self.spec.head_dim)
        return flat.index_select(0, decodes.index).view(-1, decodes.hidden.shape[3], self.spec.head_dim)

    def _plan_prompt(self, batch: AttentionBatch, i: int, start: int) -> _Prompt:
        spec, size = self.spec, self.spec.block_size
        count, length = batch.query_lens[i], batch.lengths[i]
        context = length - count
        first = 0
        if spec.sliding_window is not None:
            first = max(0, context - spec.sliding_window + 1) // size
        blocks = batch.block_tables[i, first : -(-length // size)].long()
        mask = None
        if context > 0 or (spec.sliding_window is not None and length > spec.sliding_window):
            rows, columns = torch.arange(context, length)[:, None], torch.arange(first * size, length)
            mask = columns <= rows
            if spec.sliding_window is not None:
                mask &= columns > rows - spec.sliding_window
        return _Prompt(start, start + count, blocks, first * size, length, mask)

    def _prompt(self, query: Tensor, cache: LayerCache, prompt: _Prompt) -> Tensor:
        count = prompt.length - prompt.skipped
        keys, values = (
            self._expanded(storage, prompt.blocks, count) for storage in (cache.keys, cache.values)
        )
        if self._bends:
            return self._bent_prompt(query, keys[0], values[0], prompt)
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],  # [1, Hq, T, D]
            keys,
            values,
            attn_mask=prompt.mask,
            is_causal=prompt.mask is None,
            scale=self.spec.scale,
        )
        return attended[0].transpose(0, 1)

    def _bent_prompt(self, query: Tensor, keys: Tensor, values: Tensor, prompt: _Prompt) -> Tensor:
        """query [T, Hq, D], keys and values [Hq, L, D] -> like query; some of the T tokens at a time."""
        wide, values, window = keys.float().transpose(1, 2), values.float(), self.spec.sliding_window
        newest = torch.arange(prompt.length - len(query), prompt.length)[:, None]
        distances = torch.arange(prompt.skipped, prompt.length) - newest  # [T, L]
        output = torch.empty(query.shape, dtype=query.dtype)
        step = max(1, _AT_ONCE // (self.spec.num_heads * distances.shape[1]))
        for first in range(0, len(query), step):
            rows, distance = slice(first, first + step), distances[first : first + step]
            scores = torch.bmm(query[rows].transpose(0, 1).float() * self.spec.scale, wide)  # [Hq, T, L]
            scores = self._bent(scores, distance, (-1, 1, 1))
            hidden = distance > 0 if window is None else (distance > 0) | (distance <= -window)
            weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), dim=-1)
            output[rows] = torch.bmm(weights, values).transpose(0, 1).to(query.dtype)
        return output

    def _bent(self, scores: Tensor, distance: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Scores in float32, overwritten. `heads`: the slopes of all heads, seen in this shape, match the scores."""
        bias = None if self._slopes is None else self._slopes.view(heads) * distance
        return bend_scores(scores, self.spec.soft_cap, bias)

    def _expanded(self, storage: Tensor, blocks: Tensor, count: int) -> Tensor:
        """One sequence's blocks -> [1, Hq, count, D], each key/value head repeated for its group."""
        gathered = storage.index_select(1, blocks).flatten(1, 2)[:, :count]  # [Hkv, L, D]
        return gathered[:, None].expand(-1, self.group, -1, -1).reshape(1, self.spec.num_heads, count, -1)


def _buckets(lengths: tuple[int, ...]) -> list[list[int]]:
    """Indices grouped so that padding each group to its longest wastes little."""
    buckets: list[list[int]] = []
    total = longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if buckets and longest * (len(buckets[-1]) + 1) <= _WASTE * (total + lengths[i]):
            buckets[-1].append(i)
            total += lengths[i]
        else:
            buckets.append([i])
            total = longest = lengths[i]
    return buckets
