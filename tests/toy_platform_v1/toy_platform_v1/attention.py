"""Paged attention, one sequence after another, on a cache that lies head by head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, CacheLayout, LayerCache


class ToyAttention(Attention):
    """Keys and values are [num_kv_heads, num_blocks, block_size, head_dim]."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    def layout(self, num_blocks: int) -> CacheLayout:
        return CacheLayout((self.spec.num_kv_heads, num_blocks, self.spec.block_size, self.spec.head_dim), 1)

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: AttentionBatch) -> None:
        for storage, new in ((cache.keys, key), (cache.values, value)):
            storage.view(self.spec.num_kv_heads, -1, self.spec.head_dim)[:, plan.slot_mapping] = (
                new.transpose(0, 1)
            )

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionBatch) -> Tensor:
        output, start = torch.zeros_like(query), 0
        for i, new in enumerate(plan.query_lens):
            rows = slice(start, start + new)
            output[rows] = self._attend(query[rows], cache, plan.block_tables[i], plan.lengths[i])
            start += new
        return output

    def _attend(self, query: Tensor, cache: LayerCache, table: Tensor, length: int) -> Tensor:
        """query [Q, Hq, D], the newest of `length` tokens."""
        size, context = self.spec.block_size, length - len(query)
        window = self.spec.sliding_window or length
        oldest = max(0, context - window + 1) // size * size  # where the first block that is seen begins
        blocks = table[oldest // size : -(-length // size)].long()
        keys, values = (s[:, blocks].flatten(1, 2)[:, : length - oldest] for s in (cache.keys, cache.values))
        group = self.spec.num_heads // self.spec.num_kv_heads
        newest, seen = torch.arange(context, length)[:, None], torch.arange(oldest, length)
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None].float(),
            keys.repeat_interleave(group, dim=0)[None].float(),
            values.repeat_interleave(group, dim=0)[None].float(),
            attn_mask=(seen <= newest) & (seen > newest - window),
            scale=self.spec.scale,
        )
        return attended[0].transpose(0, 1).to(query.dtype)
