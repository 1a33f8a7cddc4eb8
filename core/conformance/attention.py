"""A platform's attention against dense attention in float64, on a cache full of poison.

Every slot that holds no token of the batch is NaN, or has a scale that is: blocks of nobody, slots past a length,
blocks that a window has left behind. Reading one shows in the output; what hides a NaN is given large numbers in its
place, and what remembers a block is given others that come after. Two layers share each plan, as a model's layers do.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from core.conformance import Options, Result
from core.conformance.compare import difference
from core.conformance.kernels import raised
from core.conformance.paging import kept, padded, paged_batch, poison, poisoned_cache
from core.conformance.scenarios import Scenario, scenarios
from core.contracts.attention import Attention, AttentionBatch, AttentionSpec, alibi_slopes
from core.contracts.platform import Capabilities, Device, Platform, SchedulingLimits
from core.errors import UnsupportedShape
from core.execution.dispatch import check_capabilities, resolve_attention
from core.ledger import Ledger
from core.reference.inputs import rounded

_LAYERS = 2


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """The level "attention": every dtype, block size and scenario; of block sizes only the first when it is quick."""
    capabilities = platform.capabilities(device)
    block_sizes = capabilities.block_sizes[:1] if options.quick else capabilities.block_sizes
    for dtype, block_size in product(options.dtypes or capabilities.dtypes, block_sizes):
        yield from check_attention(platform, device, dtype, block_size, options.seed, options.only)


def check_attention(
    platform: Platform, device: Device, dtype: str, block_size: int, seed: int = 0, only: str = ""
) -> Iterator[Result]:
    """Whatever serves attention on this device, in every scenario; those outside its manifest are not supported.

    Keys and values are kept in the dtype first, then in whatever else the device says that it keeps them in. `only`
    is what the name of a check must contain.
    """
    capabilities = platform.capabilities(device)
    cache_dtypes = (None, *sorted(capabilities.kv_cache_dtypes))
    for scenario, cache_dtype in product(scenarios(block_size, capabilities), cache_dtypes):
        spec = replace(scenario.spec(dtype, block_size), cache_dtype=cache_dtype)
        blocks = f"blocks of {block_size}" + (f", kept in {cache_dtype}" if cache_dtype else "")
        case = f"{scenario.name}, {blocks}"
        found = Result(level="attention", subject="attention", case=case, dtype=dtype)
        if only in found.name:
            unsupported = _excluded(platform, capabilities, spec)
            problem = "" if unsupported else _tried(platform, device, capabilities, spec, scenario, seed)
            yield replace(found, problem=problem, unsupported=unsupported)


def _excluded(platform: Platform, capabilities: Capabilities, spec: AttentionSpec) -> str:
    """Why the device's manifest excludes layers of this spec, or ""."""
    try:
        check_capabilities(platform, capabilities, spec)
    except UnsupportedShape as error:
        return str(error)
    return ""


def _tried(
    platform: Platform,
    device: Device,
    capabilities: Capabilities,
    spec: AttentionSpec,
    scenario: Scenario,
    seed: int,
) -> str:
    """What is wrong, or ""."""
    try:
        attention = resolve_attention(platform, device, spec, Ledger())
        trial = _Trial(attention, spec, scenario, device.torch_device, seed)
        return trial.run(capabilities.scheduling)
    except Exception as error:
        return raised(error)


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
    """One scenario on a cache of its own."""

    def __init__(
        self, attention: Attention, spec: AttentionSpec, scenario: Scenario, torch_device: str, seed: int
    ) -> None:
        self.attention, self.spec, self.scenario, self.device = attention, spec, scenario, torch_device
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.widths = [-(-length // spec.block_size) for _, length in scenario.sequences]
        self.num_blocks = sum(self.widths) + 4
        self.caches = [
            poisoned_cache(attention, self.num_blocks, torch_device, old=scenario.old_numbers)
            for _ in range(_LAYERS)
        ]

    def run(self, limits: SchedulingLimits) -> str:
        """The first problem, or ""."""
        return next(filter(None, (self._round(limits) for _ in range(self.scenario.rounds))), "")

    def _round(self, limits: SchedulingLimits) -> str:
        order = [int(i) + 1 for i in torch.randperm(self.num_blocks - 1, generator=self.generator)]
        sequences = self._dealt(order)
        before = self._bits(order)
        for sequence in sequences:
            self._write_context(sequence, limits)
        self._poison([block for sequence in sequences for block in self._leave_behind(sequence)])
        for together in _steps(sequences, limits):
            if problem := self._step(together, limits):
                return problem
        untouched = all(now.equal(was) for now, was in zip(self._bits(order), before, strict=True))
        return "" if untouched else "wrote into blocks that belong to nobody"

    def _dealt(self, order: list[int]) -> list[_Sequence]:
        """The scenario's sequences with blocks from the end of `order`, which keeps what is nobody's."""
        sequences: list[_Sequence] = []
        for (new, length), width in zip(self.scenario.sequences, self.widths, strict=True):
            blocks = [order.pop() for _ in range(width)]
            sequences.append(_Sequence(new, length, blocks, [self._random(length) for _ in range(_LAYERS)]))
        self._share(sequences, self.scenario.shared_blocks)
        return sequences

    def _step(self, sequences: Sequence[_Sequence], limits: SchedulingLimits) -> str:
        batch = self._batch(sequences, [s.length for s in sequences], [s.new for s in sequences], limits)
        plan, count = self.attention.plan(batch), len(batch.slot_mapping)
        for layer, cache in enumerate(self.caches):
            rows = [
                torch.cat([s.layers[layer][part][s.length - s.new :] for s in sequences]) for part in range(3)
            ]
            query, key, value = (padded(tensor, count, self.device) for tensor in rows)
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
            key, value = (
                padded(rows[:context], len(batch.slot_mapping), self.device) for rows in (key, value)
            )
            self.attention.write(key, value, cache, plan)

    def _leave_behind(self, sequence: _Sequence) -> list[int]:
        """Drop the blocks that no new token sees, as the engine does: their entries become 0."""
        if self.spec.sliding_window is None:
            return []
        oldest = max(0, sequence.length - sequence.new - self.spec.sliding_window + 1)
        left = sequence.blocks[: oldest // self.spec.block_size]
        sequence.blocks[: len(left)] = [0] * len(left)
        return left

    def _share(self, sequences: Sequence[_Sequence], count: int) -> None:
        """Give every sequence the first one's leading blocks, and with them its keys and values."""
        first, size = sequences[0], count * self.spec.block_size
        for other in sequences[1:] if count else ():
            other.blocks[:count] = first.blocks[:count]
            for layer in range(_LAYERS):
                for part in (1, 2):
                    other.layers[layer][part][:size] = first.layers[layer][part][:size]

    def _bits(self, blocks: Sequence[int]) -> list[Tensor]:
        """What is in these blocks, of keys and values in each layer: bytes on the host."""
        index = torch.tensor(blocks, device=self.device)
        return [
            storage.index_select(cache.block_axis, index).cpu().view(torch.uint8)
            for cache in self.caches
            for storage in (cache.keys, cache.values)
        ]

    def _poison(self, blocks: Sequence[int]) -> None:
        index = torch.tensor(blocks, dtype=torch.int64, device=self.device)
        for cache in self.caches:
            for storage in (cache.keys, cache.values):
                fill = poison(storage.dtype, old=self.scenario.old_numbers)
                storage.index_fill_(cache.block_axis, index, fill)

    def _random(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.spec.num_heads, self.spec.num_kv_heads, self.spec.num_kv_heads)
        shapes = [(length, count, self.spec.head_dim) for count in heads]
        query, key, value = (torch.randn(shape, generator=self.generator).to(self.dtype) for shape in shapes)
        return query, key, value

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
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    if spec.alibi:
        slopes = torch.tensor(alibi_slopes(spec.num_heads), dtype=torch.float64)
        scores = scores + slopes[:, None, None] * (position - newest)
    hidden = position > newest
    if spec.sliding_window is not None:
        hidden |= position <= newest - spec.sliding_window
    weights = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)
