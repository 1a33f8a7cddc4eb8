"""How many blocks the memory holds, decided before any of it is taken.

Counts bytes and blocks; what they are made of is the runner's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

from core.config import Settings, format_bytes
from core.contracts.model import LayerShape, ModelDescription, StateShape
from core.contracts.runner import CacheGroup
from core.engine.kv_cache import blocks_needed
from core.errors import InsufficientMemory

STATES = 2
"""States of one sequence at once: the one that a step begins with, and the one that it ends in."""


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Blocks per cache group (block 0 included), and the longest sequence that fits them alone.

    num_tokens  that all of it holds, in sequences of that length where layers keep nothing but states
    """

    num_blocks: tuple[int, ...]
    max_model_len: int
    total_bytes: int
    num_tokens: int


def cache_groups(description: ModelDescription) -> tuple[CacheGroup, ...]:
    """Layers whose blocks live equally long share a group: full attention, one per sliding window, and states."""
    layers: dict[CacheGroup, list[int]] = {}
    for index, shape in enumerate(description.layers):
        layers.setdefault(_group(shape), []).append(index)
    return tuple(replace(group, layers=tuple(indices)) for group, indices in layers.items())


def _group(shape: LayerShape) -> CacheGroup:
    """The group of a layer, without its layers."""
    if isinstance(shape, StateShape):  # the next token needs what the newest left, and nothing else
        return CacheGroup(name="state", layers=(), window=2, recurrent=True)
    window = shape.sliding_window
    return CacheGroup(name="full" if window is None else f"window_{window}", layers=(), window=window)


def check_weights(settings: Settings, weight_bytes: int, free_bytes: int) -> None:
    """Refuse a model whose weights alone exceed the free memory."""
    if weight_bytes > free_bytes:
        quantized = "" if settings.quantization == "none" else f" and {settings.quantization} quantization"
        raise InsufficientMemory(
            f"the weights take {format_bytes(weight_bytes)} in {settings.dtype}{quantized} and "
            f"{format_bytes(free_bytes)} are free; choose a smaller model or dtype, or free some memory",
            setting="dtype",
        )


def plan_cache(
    settings: Settings,
    groups: Sequence[CacheGroup],
    storages: Sequence[Sequence[int]],
    alignment: int,
    free_bytes: int,
) -> CachePlan:
    """Spend the cache's memory on blocks.

    The memory is what was asked for, else this engine's share of half of what is free, and no more than every
    sequence could use at once. A context that nobody asked for shrinks to what fits; one that was asked for
    is refused.

    storages    per group, what `Runner.storage_bytes` says of it
    free_bytes  on the device, now that the weights are loaded
    Raises InsufficientMemory naming the numbers and the setting to change.
    """
    sizes = _Sizes(settings, groups, storages, alignment)
    asked = settings.kv_cache_memory
    budget = int(free_bytes // 2 * settings.memory_share) if asked is None else asked
    if budget > free_bytes:
        raise InsufficientMemory(
            f"kv_cache_memory is {format_bytes(budget)} and {format_bytes(free_bytes)} are free beside the weights; "
            "choose less",
            setting="kv_cache_memory",
        )
    length = _fitting_length(sizes, settings, budget)
    num_blocks = sizes.spread(length, budget)
    held = [count - 1 for count, group in zip(num_blocks, groups, strict=True) if not group.recurrent]
    whole = (min(num_blocks) - 1) // STATES * length
    return CachePlan(
        num_blocks=num_blocks,
        max_model_len=length,
        total_bytes=sizes.bytes_in(num_blocks),
        num_tokens=min(held) * settings.block_size if held else whole,
    )


class _Sizes:
    """Blocks that one sequence needs at once, per group, by its length in tokens.

    multiples  per group, every storage is a multiple of `alignment` bytes for this many blocks
    """

    def __init__(
        self,
        settings: Settings,
        groups: Sequence[CacheGroup],
        storages: Sequence[Sequence[int]],
        alignment: int,
    ) -> None:
        self._settings = settings
        self._groups = groups
        self._block_bytes = [sum(sizes) for sizes in storages]
        self.multiples = [lcm(*(alignment // gcd(alignment, size) for size in sizes)) for sizes in storages]

    def of(self, num_tokens: int) -> list[int]:
        return [self._needed(group, num_tokens) for group in self._groups]

    def least(self, num_tokens: int) -> list[int]:
        """What must be allocated: block 0 too, rounded up to the alignment."""
        counts = zip(self.of(num_tokens), self.multiples, strict=True)
        return [-(-(count + 1) // multiple) * multiple for count, multiple in counts]

    def bytes_in(self, num_blocks: Sequence[int]) -> int:
        return sum(count * size for count, size in zip(num_blocks, self._block_bytes, strict=True))

    def bytes_of(self, num_tokens: int) -> int:
        return self.bytes_in(self.least(num_tokens))

    def spread(self, num_tokens: int, budget: int) -> tuple[int, ...]:
        """Blocks for one sequence of this length, which fits, and for as many more as the rest of the budget holds.

        Every sequence needs its states, however short it is: they come first, up to half of that rest.
        """
        num_blocks, one = self.least(num_tokens), self.of(num_tokens)
        rest, more = budget - self.bytes_in(num_blocks), self._others(num_tokens)
        wanted = [0, 0]  # bytes for all other sequences: of tokens, and of states
        for group, count, size in zip(self._groups, one, self._block_bytes, strict=True):
            wanted[group.recurrent] += count * size * more
        states = min(wanted[True], max(rest // 2, rest - wanted[False]))
        given = min(wanted[False], rest - states), states
        for g, (group, multiple) in enumerate(zip(self._groups, self.multiples, strict=True)):
            kind = group.recurrent
            share = one[g] * more * given[kind] // wanted[kind] if wanted[kind] else 0
            num_blocks[g] += share // multiple * multiple
        return tuple(num_blocks)

    def _others(self, num_tokens: int) -> int:
        """How many more sequences of this length could be in the cache at once."""
        settings, others = self._settings, self._settings.max_num_seqs - 1
        if not settings.whole:
            return others
        # They leave it after their step. Each may leave a block partly filled.
        most = settings.max_num_batched_tokens + settings.max_num_seqs * settings.block_size
        return min(others, most // num_tokens)

    def _needed(self, group: CacheGroup, num_tokens: int) -> int:
        """Blocks of one sequence."""
        if group.recurrent:
            return STATES
        held = num_tokens
        if group.window is not None:
            # A step's chunk is written before what it leaves behind is released; its edges may straddle blocks.
            most = group.window + self._settings.max_num_batched_tokens + self._settings.block_size
            held = min(num_tokens, most)
        return blocks_needed(held, self._settings.block_size)


def _fitting_length(sizes: _Sizes, settings: Settings, budget: int) -> int:
    wanted = settings.max_model_len
    if sizes.bytes_of(wanted) <= budget:
        return wanted
    low, high = 0, wanted  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sizes.bytes_of(middle) <= budget else (low, middle)
    fits, needed = f"{low:,} tokens", format_bytes(sizes.bytes_of(wanted))
    if low < settings.block_size:
        raise InsufficientMemory(
            f"a KV cache of {format_bytes(budget)} holds {fits}, less than one block of {settings.block_size}; "
            f"set kv_cache_memory to {format_bytes(sizes.bytes_of(settings.block_size * 4))} or more",
            setting="kv_cache_memory",
        )
    if settings.max_model_len_asked:
        raise InsufficientMemory(
            f"a KV cache of {format_bytes(budget)} holds {fits} and max_model_len is {wanted:,}; "
            f"set max_model_len to {low} or less, or kv_cache_memory to {needed} or more",
            setting="kv_cache_memory",
        )
    return low
