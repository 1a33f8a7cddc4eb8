"""Reference attention that checks what it is given, and that nothing dead is ever read."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, CacheLayout, LayerCache
from core.contracts.platform import Device, SchedulingLimits
from core.errors import ContractViolation
from core.reference.attention import ReferenceAttention
from platforms.simulated.batch import check_batch
from platforms.simulated.memory import poisoned


@dataclass(slots=True)
class _Plan:
    """The reference's plan, the batch it was made for, and how many layers have written under it."""

    reference: Any
    batch: AttentionBatch
    num_layers: int = 0


class StrictAttention(Attention):
    """Attention for layers of one spec."""

    def __init__(self, spec: AttentionSpec, device: Device, limits: SchedulingLimits) -> None:
        self._reference = ReferenceAttention(spec)
        self.spec = spec
        self._device = device
        self._limits = limits

    def layout(self, num_blocks: int) -> CacheLayout:
        return self._reference.layout(num_blocks)

    def plan(self, batch: AttentionBatch) -> _Plan:
        check_batch(batch, self.spec, self._limits, self._device.torch_device)
        return _Plan(self._reference.plan(batch), batch)

    def write(self, key: Tensor, value: Tensor, cache: LayerCache, plan: _Plan) -> None:
        plan.num_layers += 1
        num_tokens = len(plan.batch.slot_mapping)
        for name, tensor, dim in (("key", key, self.spec.head_dim), ("value", value, self.spec.value_dim)):
            self._check(name, tensor, (num_tokens, self.spec.num_kv_heads, dim))
        self._check_cache(cache, plan.batch)
        self._reference.write(key, value, cache, plan.reference)

    def attend(self, query: Tensor, cache: LayerCache, plan: _Plan) -> Tensor:
        self._check("query", query, (len(plan.batch.slot_mapping), self.spec.num_heads, self.spec.head_dim))
        output = self._reference.attend(query, cache, plan.reference)
        finite = output.isfinite().flatten(1).all(dim=1)[: sum(plan.batch.query_lens)]
        starts = [0, *accumulate(plan.batch.query_lens)]
        for i in sorted({bisect_right(starts, int(token)) - 1 for token in (~finite).nonzero()}):
            self._find_dead_slot(i, cache, plan)
        return output

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: str | None = None) -> None:
        dtype = dtype or self.spec.dtype
        given = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if given != (shape, getattr(torch, dtype), torch.device(self._device.torch_device)):
            raise ContractViolation(
                f"simulated: {name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}; "
                f"expected {list(shape)} {dtype} on {self._device.torch_device}"
            )
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ContractViolation(f"simulated: the heads of {name} are not dense in memory")

    def _check_cache(self, cache: LayerCache, batch: AttentionBatch) -> None:
        num_blocks = cache.keys.shape[cache.block_axis]
        keys, values = self.layout(num_blocks).tensors(self.spec.dtype)
        self._check("the cache's keys", cache.keys, *keys)
        self._check("the cache's values", cache.values, *values)
        if int(batch.slot_mapping.max()) >= num_blocks * self.spec.block_size:
            raise ContractViolation(
                f"simulated: slot {int(batch.slot_mapping.max())} is outside a cache of {num_blocks} blocks"
            )

    def _find_dead_slot(self, i: int, cache: LayerCache, plan: _Plan) -> None:
        """Name the poison behind sequence i's output that is not finite; the model's own doing is let be."""
        batch, size, window = plan.batch, self.spec.block_size, self.spec.sliding_window
        context = batch.lengths[i] - batch.query_lens[i]  # none, unless the spec is causal
        oldest = 0 if window is None else max(0, context - window + 1)
        for position in range(oldest, context):
            block, offset = int(batch.block_tables[i, position // size]), position % size
            if bool(poisoned(cache.keys[block, offset]).any() or poisoned(cache.values[block, offset]).any()):
                raise ContractViolation(
                    f"simulated: sequence {i} reads position {position} from slot {offset} of block {block}, "
                    f"which was discarded or never written (layer {plan.num_layers - 1} of its spec)"
                )
