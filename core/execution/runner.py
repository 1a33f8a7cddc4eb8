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
from core.contracts.model import Model, Parts, StateShape, StepInputs
from core.contracts.runner import Batch, CacheGroup, Runner, RunnerContext, SequenceResult
from core.execution import dispatch
from core.execution.inputs import Prepared, prepare, state_batch
from core.execution.pooler import Pooler
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
        specs = settings.attention_specs(context.description)
        self.kernels = dispatch.resolve_kernels(platform, device, settings.dtype, ledger, specs, tried=True)
        self.attention = self._resolve_attention(specs)
        self.caches: tuple[LayerCache, ...] = ()
        self._group_of = {layer: g for g, group in enumerate(context.groups) for layer in group.layers}
        kinds = [(attention, self._group_of[layer]) for layer, attention in enumerate(self.attention)]
        self._kinds = list(dict.fromkeys(kinds))
        self._kind_of = [self._kinds.index(kind) for kind in kinds]
        self._sampler = Sampler(self.kernels.argmax, self.kernels.sample)
        self._pooler: Pooler | None = None
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
            max_model_len=context.settings.max_model_len,
        )
        with torch.inference_mode():
            self.model: Model = context.architecture.build(context.description, weights, parts)
        weights.finish()
        if context.description.pooling is not None:
            folder, head = context.checkpoint.path, self.model.logits
            self._pooler = Pooler(context.description.pooling, folder, self.device, head)
        context.ledger.record("weights", "core", weights.summary())

    def block_bytes(self, group: CacheGroup) -> int:
        return sum(self.storage_bytes(group))

    def storage_bytes(self, group: CacheGroup) -> Sequence[int]:
        layouts = [self._layout(layer, 1) for layer in group.layers]
        held = [tensor for layout in layouts for tensor in layout.tensors(self.context.settings.dtype)]
        return [math.prod(shape) * getattr(torch, dtype).itemsize for shape, dtype in held]

    def memory_statistics(self) -> MemoryStatistics:
        return self.memory.statistics()

    def allocate_cache(self, num_blocks: Sequence[int]) -> None:
        caches: list[LayerCache] = []
        for layer in range(len(self.attention)):
            layout = self._layout(layer, num_blocks[self._group_of[layer]])
            keys, values = (self._allocate(*held) for held in layout.tensors(self.context.settings.dtype))
            caches.append(LayerCache(keys, values, layout.block_axis))
        self.caches = tuple(caches)
        total = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
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
        pooling = self.context.description.pooling
        return prepare(
            batch,
            block_size=block_size,
            token_multiple=multiple,
            device=self.device,
            pooled=None if pooling is None else pooling.tokens,
        )

    def step_inputs(self, prepared: Prepared) -> StepInputs:
        """What the model reads. Layers of equal spec in one cache group share a plan."""
        size = self.context.settings.block_size
        plans = [
            state_batch(prepared.groups[group], size)
            if attention is None
            else attention.plan(prepared.groups[group])
            for attention, group in self._kinds
        ]
        return StepInputs(
            token_ids=prepared.token_ids,
            positions=prepared.positions,
            rows=prepared.rows,
            segments=prepared.segments,
            caches=self.caches,
            plans=tuple([plans[kind] for kind in self._kind_of]),
        )

    def forward(self, inputs: StepInputs) -> Tensor:
        """Stage two: tensors into hidden states, [num_rows, hidden_size]. `Execution.wrap` may replace it."""
        return self.model.forward(inputs)

    def sample(self, batch: Batch, prepared: Prepared, hidden: Tensor) -> list[SequenceResult]:
        """Stage three: hidden states into tokens and log-probabilities, or into what texts are pooled to."""
        results = [SequenceResult() for _ in batch.sequences]
        count = len(prepared.sampled)
        if self._pooler is not None:
            rows = [batch.sequences[i] for i in prepared.sampled]
            self._pooler(hidden, rows, [results[i] for i in prepared.sampled])
            return results
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
        self._pooler = None
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

    def _layout(self, layer: int, num_blocks: int) -> CacheLayout:
        """How a layer's cache is stored."""
        attention, shape = self.attention[layer], self.context.description.layers[layer]
        if attention is not None:
            return attention.layout(num_blocks)
        assert isinstance(shape, StateShape)
        return CacheLayout(
            (num_blocks, *shape.convolution), 0, value_shape=(num_blocks, *shape.state), value_dtype="float32"
        )

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        if math.prod(shape):
            return self.memory.allocate(shape, dtype)
        return torch.empty(
            shape, dtype=getattr(torch, dtype), device=self.device
        )  # values that are not stored

    def _resolve_attention(self, specs: Sequence[AttentionSpec]) -> tuple[Attention | None, ...]:
        """One per layer."""
        context = self.context
        resolved = {
            spec: dispatch.resolve_attention(context.platform, context.device, spec, context.ledger)
            for spec in specs
        }
        return tuple(
            None if isinstance(shape, StateShape) else resolved[context.settings.attention_spec(shape)]
            for shape in context.description.layers
        )

    def _move_blocks(self, batch: Batch) -> None:
        for g, group in enumerate(self.context.groups):
            if batch.discarded[g] or batch.copies[g]:
                caches = [self.caches[layer] for layer in group.layers]
                if batch.discarded[g]:
                    self.memory.discard_blocks(caches, batch.discarded[g])
                if batch.copies[g]:
                    self.memory.copy_blocks(caches, batch.copies[g])
