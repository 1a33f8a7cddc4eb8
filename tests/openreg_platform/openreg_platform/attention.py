"""Paged attention, one sequence after another, on blocks that lie head by head."""

import torch
from torch import Tensor

from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, CacheLayout, LayerCache
from openreg_platform.tensor import DeviceTensor, on_host


class OpenregAttention(Attention):
    """Keys and values are [num_blocks, num_kv_heads, block_size, head_dim]."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    def layout(self, num_blocks: int) -> CacheLayout:
        return CacheLayout((num_blocks, self.spec.num_kv_heads, self.spec.block_size, self.spec.head_dim), 0)

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: AttentionBatch) -> None:
        slots = on_host(plan.slot_mapping)
        blocks, offsets = slots // self.spec.block_size, slots % self.spec.block_size
        for storage, new in ((cache.keys, key), (cache.values, value)):
            on_host(storage)[blocks, :, offsets] = on_host(new)

    def attend(self, query: Tensor, cache: LayerCache, plan: AttentionBatch) -> Tensor:
        queries, tables = on_host(query), on_host(plan.block_tables)
        keys, values = on_host(cache.keys), on_host(cache.values)
        output, start = torch.zeros(queries.shape, dtype=queries.dtype), 0
        for i, new in enumerate(plan.query_lens):
            rows = slice(start, start + new)
            output[rows] = self._attend(queries[rows], keys, values, tables[i], plan.lengths[i])
            start += new
        return DeviceTensor(output)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, table: Tensor, length: int) -> Tensor:
        """query [Q, Hq, D], the newest of `length` tokens; keys and values of the whole cache."""
        spec, context = self.spec, length - len(query)
        window = spec.sliding_window or length
        first = max(0, context - window + 1) // spec.block_size  # the first block that is seen
        blocks = table[first : -(-length // spec.block_size)].long()
        seen = torch.arange(first * spec.block_size, length)
        key, value = (self._gathered(storage, blocks, len(seen)) for storage in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query.float(), key) * spec.scale
        if spec.soft_cap is not None:
            scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
        distance = torch.arange(context, length)[:, None] - seen
        weights = torch.softmax(scores.masked_fill((distance < 0) | (distance >= window), -torch.inf), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)

    def _gathered(self, storage: Tensor, blocks: Tensor, count: int) -> Tensor:
        """[count, Hq, D], float32: these blocks' first tokens, each head repeated for its group."""
        tokens = storage[blocks].transpose(1, 2).flatten(0, 1)[:count]  # [count, Hkv, D]
        return tokens.float().repeat_interleave(self.spec.num_heads // self.spec.num_kv_heads, dim=1)
