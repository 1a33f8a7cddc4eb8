"""A platform's attention against dense attention in float64, on a cache full of poison.

Every slot that holds no token of the batch is NaN, or has a scale that is: blocks of nobody, slots past a length,
blocks that a window has left behind. Reading one shows in the output. Two layers share each plan, as a model's
layers do.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from core.conformance import Result
from core.conformance.compare import difference
from core.conformance.paging import is_poison, kept, padded, paged_batch, poison, poisoned_cache
from core.conformance.scenarios import Scenario, scenarios
from core.contracts.attention import Attention, AttentionBatch, AttentionSpec
from core.contracts.platform import Device, Platform, SchedulingLimits
from core.execution.dispatch import resolve_attention
from core.ledger import Ledger
from core.reference.inputs import rounded

_LAYERS = 2


def check_attention(
    platform: Platform, device: Device, dtype: str, block_size: int, seed: int = 0
) -> Iterator[Result]:
    """Whatever serves attention on this device, in every scenario within its capabilities.

    Keys and values are kept in the dtype first, then in whatever else the device says that it keeps them in.
    """
    capabilities = platform.capabilities(device)
    cache_dtypes = (None, *sorted(capabilities.kv_cache_dtypes))
    for scenario, cache_dtype in product(scenarios(block_size), cache_dtypes):
        if capabilities.head_dims is not None and scenario.head_dim not in capabilities.head_dims:
            continue
        if scenario.window is not None and "sliding_window" not in capabilities.features:
            continue
        spec = replace(scenario.spec(dtype, block_size), cache_dtype=cache_dtype)
        try:
            attention = resolve_attention(platform, device, spec, Ledger())
            trial = _Trial(attention, spec, scenario, device.torch_device, seed)
            problem = trial.run(capabilities.scheduling)
        except Exception as error:
            problem = f"raised {type(error).__name__}: {error}"
        case = f"{scenario.name}, kept in {cache_dtype}" if cache_dtype else scenario.name
        yield Result(subject="attention", case=case, dtype=dtype, problem=problem)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One sequence: its blocks (0 where it has left them behind), and per layer all queries, keys and values.

    query [length, Hq, D], key and value [length, Hkv, D], model dtype, on the host
    """

    new: int
    length: int
    blocks: list[int]
    layers: list[tuple[Tensor, Tensor, Tensor]]


class _Trial:
    """One scenario on a fresh cache."""

    def __init__(
        self, attention: Attention, spec: AttentionSpec, scenario: Scenario, torch_device: str, seed: int
    ) -> None:
        self.attention, self.spec, self.device = attention, spec, torch_device
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        widths = [-(-length // spec.block_size) for _, length in scenario.sequences]
        self.num_blocks = sum(widths) + 4
        order = [int(i) + 1 for i in torch.randperm(self.num_blocks - 1, generator=self.generator)]
        self.sequences: list[_Sequence] = []
        for (new, length), width in zip(scenario.sequences, widths, strict=True):
            blocks = [order.pop() for _ in range(width)]
            self.sequences.append(
                _Sequence(new, length, blocks, [self._random(length) for _ in range(_LAYERS)])
            )
        self._share(scenario.shared_blocks)
        self.unowned = [0, *order]
        self.caches = [poisoned_cache(attention, self.num_blocks, torch_device) for _ in range(_LAYERS)]

    def run(self, limits: SchedulingLimits) -> str:
        """The first problem, or ""."""
        for sequence in self.sequences:
            self._write_context(sequence, limits)
        self._poison(block for sequence in self.sequences for block in self._leave_behind(sequence))
        for together in _steps(self.sequences, limits):
            problem = self._step(together, limits)
            if problem:
                return problem
        return self._stray_writes()

    def _step(self, sequences: Sequence[_Sequence], limits: SchedulingLimits) -> str:
        batch = self._batch(sequences, [s.length for s in sequences], [s.new for s in sequences], limits)
        plan, padded = self.attention.plan(batch), len(batch.slot_mapping)
        for layer, cache in enumerate(self.caches):
            rows = [
                torch.cat([s.layers[layer][part][s.length - s.new :] for s in sequences]) for part in range(3)
            ]
            query, key, value = (self._padded(tensor, padded) for tensor in rows)
            self.attention.write(key, value, cache, plan)
            output = self.attention.attend(query, cache, plan)
            expected = torch.cat([_dense(s, layer, self.spec) for s in sequences])
            if tuple(output.shape) != tuple(query.shape) or output.dtype != self.dtype:
                given = f"{list(output.shape)} {output.dtype}"
                return f"returned {given}, expected {list(query.shape)} {self.dtype}"
            if not bool(output[len(expected) :].isfinite().all()):
                return "rows of padding tokens are not finite"
            problem = difference(output[: len(expected)], expected, rounded(8)[self.spec.dtype])
            if problem:
                return f"layer {layer}: {problem}"
        return ""

    def _write_context(self, sequence: _Sequence, limits: SchedulingLimits) -> None:
        context = sequence.length - sequence.new
        if context == 0:
            return
        batch = self._batch([sequence], [context], [context], limits)
        plan = self.attention.plan(batch)
        for (_, key, value), cache in zip(sequence.layers, self.caches, strict=True):
            padded = [self._padded(tensor[:context], len(batch.slot_mapping)) for tensor in (key, value)]
            self.attention.write(padded[0], padded[1], cache, plan)

    def _leave_behind(self, sequence: _Sequence) -> list[int]:
        """Drop the blocks that no new token sees, as the engine does: their entries become 0."""
        if self.spec.sliding_window is None:
            return []
        oldest = max(0, sequence.length - sequence.new - self.spec.sliding_window + 1)
        left = sequence.blocks[: oldest // self.spec.block_size]
        sequence.blocks[: len(left)] = [0] * len(left)
        return left

    def _share(self, count: int) -> None:
        """Give every sequence the first one's leading blocks, and with them its keys and values."""
        first, size = self.sequences[0], count * self.spec.block_size
        for other in self.sequences[1:] if count else ():
            other.blocks[:count] = first.blocks[:count]
            for layer in range(_LAYERS):
                for part in (1, 2):
                    other.layers[layer][part][:size] = first.layers[layer][part][:size]

    def _stray_writes(self) -> str:
        for cache in self.caches:
            for storage in (cache.keys, cache.values):
                index = torch.tensor(self.unowned[1:], device=storage.device)
                if not bool(is_poison(storage.index_select(cache.block_axis, index)).all()):
                    return "wrote into blocks that belong to nobody"
        return ""

    def _poison(self, blocks: Iterator[int]) -> None:
        index = torch.tensor(list(blocks), dtype=torch.int64, device=self.device)
        for cache in self.caches:
            for storage in (cache.keys, cache.values):
                storage.index_fill_(cache.block_axis, index, poison(storage.dtype))

    def _random(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.spec.num_heads, self.spec.num_kv_heads, self.spec.num_kv_heads)
        shapes = [(length, count, self.spec.head_dim) for count in heads]
        query, key, value = (torch.randn(shape, generator=self.generator).to(self.dtype) for shape in shapes)
        return query, key, value

    def _padded(self, rows: Tensor, count: int) -> Tensor:
        return padded(rows, count, self.device)

    def _batch(
        self, sequences: Sequence[_Sequence], lengths: list[int], new: list[int], limits: SchedulingLimits
    ) -> AttentionBatch:
        return paged_batch(
            [sequence.blocks for sequence in sequences],
            lengths,
            new,
            block_size=self.spec.block_size,
            token_multiple=limits.token_multiple,
            torch_device=self.device,
        )


def _steps(sequences: Sequence[_Sequence], limits: SchedulingLimits) -> Iterator[Sequence[_Sequence]]:
    """The sequences in as few steps as the device allows."""
    decodes, prompts = [s for s in sequences if s.new == 1], [s for s in sequences if s.new > 1]
    for group in (decodes, prompts) if limits.separate_steps else (decodes + prompts,):
        most = limits.max_num_seqs or len(sequences)
        for first in range(0, len(group), most):
            yield group[first : first + most]


def _dense(sequence: _Sequence, layer: int, spec: AttentionSpec) -> Tensor:
    """[new, Hq, D], float64: softmax over everything that each new token sees."""
    query, key, value = sequence.layers[layer]
    query, group = query.double(), spec.num_heads // spec.num_kv_heads
    key, value = (kept(tensor, spec).repeat_interleave(group, dim=1) for tensor in (key, value))  # [L, Hq, D]
    scores = torch.einsum("qhd,khd->hqk", query[sequence.length - sequence.new :], key) * spec.scale
    newest = torch.arange(sequence.length - sequence.new, sequence.length)[:, None]
    position = torch.arange(sequence.length)
    hidden = position > newest
    if spec.sliding_window is not None:
        hidden |= position <= newest - spec.sliding_window
    weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)
