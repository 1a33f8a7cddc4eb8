"""The core's runner: any model of the model contract, on any device that executes torch operations.

A step is three stages, each replaceable by a subclass that a platform returns from `Platform.runner`:
`prepare` (a batch's counts into tensors), `forward` (tensors into hidden states), `sample` (those into tokens).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core.config import format_bytes
from core.contracts.attention import Attention, AttentionSpec, CacheLayout, LayerCache
from core.contracts.memory import MemoryStatistics
from core.contracts.model import Model, Parts, StepInputs
from core.contracts.runner import Batch, CacheGroup, Runner, RunnerContext, SequenceResult
from core.execution import dispatch
from core.execution.inputs import Prepared, prepare
from core.execution.sampler import NOT_FINITE, Sampler, top_logprobs
from core.weights.loader import CheckpointWeights

_PROMPT_LOGITS_ROWS = 128  # prompt logits are made this many rows at a time: [2048, 150000] would not fit


class ModelRunner(Runner):
    """Holds one model and its cache on one device."""

    def __init__(self, context: RunnerContext) -> None:
        settings, platform, device, ledger = (
            context.settings,
            context.platform,
            context.device,
            context.ledger,
        )
        self.context = context
        self.device = device.torch_device
        self.execution = dispatch.resolve_execution(platform, device, ledger)
        self.execution.set_up()
        self.memory = dispatch.resolve_memory(platform, device, ledger)
        specs = self._specs()
        self.kernels = dispatch.resolve_kernels(
            platform, device, settings.dtype, ledger, tuple(dict.fromkeys(specs)), tried=True
        )
        self.attention = self._resolve_attention(specs)
        self.caches: tuple[LayerCache, ...] = ()
        self._group_of = {layer: g for g, group in enumerate(context.groups) for layer in group.layers}
        kinds = [(attention, self._group_of[layer]) for layer, attention in enumerate(self.attention)]
        self._kinds = list(dict.fromkeys(kinds))
        self._kind_of = [self._kinds.index(kind) for kind in kinds]
        self._sampler = Sampler(self.kernels.argmax, self.kernels.sample)
        self._forward = self.execution.wrap(self.forward)

    def load(self) -> None:
        context = self.context
        weights = CheckpointWeights(
            context.checkpoint,
            context.settings.dtype,
            self.device,
            context.settings.quantization,
            context.capabilities.weight_formats,
        )
        parts = Parts(
            kernels=self.kernels,
            attention=self.attention,
            dtype=context.settings.dtype,
            torch_device=self.device,
        )
        with torch.inference_mode():
            self.model: Model = context.architecture.build(context.description, weights, parts)
        weights.finish()
        context.ledger.record("weights", "core", weights.summary())

    def block_bytes(self, group: CacheGroup) -> int:
        layouts = [self.attention[layer].layout(1) for layer in group.layers]
        return sum(2 * math.prod(layout.shape) * self._itemsize(layout) for layout in layouts)

    def memory_statistics(self) -> MemoryStatistics:
        return self.memory.statistics()

    def allocate_cache(self, num_blocks: Sequence[int]) -> None:
        caches: list[LayerCache] = []
        for layer, attention in enumerate(self.attention):
            layout = attention.layout(num_blocks[self._group_of[layer]])
            dtype = layout.dtype or self.context.settings.dtype
            keys, values = (self.memory.allocate(layout.shape, dtype) for _ in range(2))
            caches.append(LayerCache(keys, values, layout.block_axis))
        self.caches = tuple(caches)
        total = sum(2 * cache.keys.nbytes for cache in caches)
        held = f"{format_bytes(total)}, keys and values in {self.context.settings.kv_cache_dtype}"
        self.context.ledger.record("kv_cache", "core", held)

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[SequenceResult]:
        clock = self.context.clock
        self._move_blocks(batch)
        prepared = self.prepare(batch)
        inputs = self.step_inputs(prepared)
        clock.mark("prepare")
        hidden = self._forward(inputs)
        clock.mark("forward")
        results = self.sample(batch, prepared, hidden)
        clock.mark("sample")
        return results

    def prepare(self, batch: Batch) -> Prepared:
        """Stage one: a batch's counts into tensors."""
        multiple = self.context.capabilities.scheduling.token_multiple
        block_size = self.context.settings.block_size
        return prepare(batch, block_size=block_size, token_multiple=multiple, device=self.device)

    def step_inputs(self, prepared: Prepared) -> StepInputs:
        """What the model reads. Layers of equal spec in one cache group share a plan."""
        plans = [attention.plan(prepared.groups[group]) for attention, group in self._kinds]
        return StepInputs(
            token_ids=prepared.token_ids,
            positions=prepared.positions,
            rows=prepared.rows,
            caches=self.caches,
            plans=tuple([plans[kind] for kind in self._kind_of]),
        )

    def forward(self, inputs: StepInputs) -> Tensor:
        """Stage two: tensors into hidden states, [num_rows, hidden_size]. `Execution.wrap` may replace it."""
        return self.model.forward(inputs)

    def sample(self, batch: Batch, prepared: Prepared, hidden: Tensor) -> list[SequenceResult]:
        """Stage three: hidden states into tokens and log-probabilities."""
        results = [SequenceResult() for _ in batch.sequences]
        count = len(prepared.sampled)
        if count:
            logits = self.model.logits(hidden[:count])
            self.context.clock.mark("logits")
            rows = [batch.sequences[i] for i in prepared.sampled]
            self._sampler(logits, rows, [results[i] for i in prepared.sampled])
        for i, rows in prepared.prompt_rows:
            self._prompt_logprobs(batch, i, hidden[count : count + rows], results[i])
            count += rows
        return results

    def close(self) -> None:
        self.caches = ()
        for held in ("model", "_forward"):  # the weights go now, not when cycles are collected
            vars(self).pop(held, None)

    def _prompt_logprobs(self, batch: Batch, i: int, hidden: Tensor, result: SequenceResult) -> None:
        part = batch.sequences[i]
        assert part.params.prompt_logprobs is not None
        if not bool(torch.isfinite(hidden).all()):
            result.error = NOT_FINITE
            return
        following = part.token_ids[part.start + 1 : part.start + 1 + hidden.shape[0]]
        chosen = torch.tensor(following, device=hidden.device)
        for first in range(0, len(following), _PROMPT_LOGITS_ROWS):
            rows = slice(first, first + _PROMPT_LOGITS_ROWS)
            logits = self.model.logits(hidden[rows])
            result.prompt_logprobs += top_logprobs(logits, chosen[rows], part.params.prompt_logprobs)

    def _specs(self) -> list[AttentionSpec]:
        """What each layer asks of attention."""
        return [self.context.settings.attention_spec(shape) for shape in self.context.description.layers]

    def _itemsize(self, layout: CacheLayout) -> int:
        return getattr(torch, layout.dtype or self.context.settings.dtype).itemsize

    def _resolve_attention(self, specs: Sequence[AttentionSpec]) -> tuple[Attention, ...]:
        context = self.context
        resolved = {
            spec: dispatch.resolve_attention(context.platform, context.device, spec, context.ledger)
            for spec in dict.fromkeys(specs)
        }
        return tuple(resolved[spec] for spec in specs)

    def _move_blocks(self, batch: Batch) -> None:
        for g, group in enumerate(self.context.groups):
            if batch.discarded[g] or batch.copies[g]:
                caches = [self.caches[layer] for layer in group.layers]
                if batch.discarded[g]:
                    self.memory.discard_blocks(caches, batch.discarded[g])
                if batch.copies[g]:
                    self.memory.copy_blocks(caches, batch.copies[g])
