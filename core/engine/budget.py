"""How many blocks the memory holds, decided before any of it is taken.

Counts bytes and blocks; what they are made of is the runner's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from core.config import Settings, format_bytes
from core.contracts.model import ModelDescription
from core.contracts.runner import CacheGroup
from core.engine.kv_cache import blocks_needed
from core.errors import InsufficientMemory


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Blocks per cache group (block 0 included), and the longest sequence that fits them alone."""

    num_blocks: tuple[int, ...]
    max_model_len: int
    total_bytes: int


def cache_groups(description: ModelDescription) -> tuple[CacheGroup, ...]:
    """Layers whose blocks live equally long share a group: full attention, and one per sliding window."""
    layers: dict[int | None, list[int]] = {}
    for index, shape in enumerate(description.layers):
        layers.setdefault(shape.sliding_window, []).append(index)
    return tuple(
        CacheGroup(
            name="full" if window is None else f"window_{window}", layers=tuple(indices), window=window
        )
        for window, indices in layers.items()
    )


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
    block_bytes: Sequence[int],
    alignment: int,
    free_bytes: int,
) -> CachePlan:
    """Spend the cache's memory on blocks.

    The memory is what was asked for, else half of what is free, and no more than every sequence could use at
    once. A context that nobody asked for shrinks to what fits; one that was asked for is refused.

    free_bytes  on the device, now that the weights are loaded
    Raises InsufficientMemory naming the numbers and the setting to change.
    """
    sizes = _Sizes(settings, groups, block_bytes, alignment)
    asked = settings.kv_cache_memory
    budget = free_bytes // 2 if asked is None else asked
    if budget > free_bytes:
        raise InsufficientMemory(
            f"kv_cache_memory is {format_bytes(budget)} and {format_bytes(free_bytes)} are free beside the weights; "
            "choose less",
            setting="kv_cache_memory",
        )
    length = _fitting_length(sizes, settings, budget)
    least, one = sizes.least(length), sizes.of(length)
    one_bytes = sum(count * size for count, size in zip(one, block_bytes, strict=True))
    extra = min(budget - sizes.bytes_of(length), one_bytes * (settings.max_num_seqs - 1))
    num_blocks = tuple(
        least[g] + one[g] * extra // one_bytes // multiple * multiple
        for g, multiple in enumerate(sizes.multiples)
    )
    total = sum(count * size for count, size in zip(num_blocks, block_bytes, strict=True))
    return CachePlan(num_blocks=num_blocks, max_model_len=length, total_bytes=total)


class _Sizes:
    """Blocks that one sequence needs at once, per group, by its length in tokens.

    multiples  per group, every layer's storage is a multiple of `alignment` bytes for this many blocks
    """

    def __init__(
        self, settings: Settings, groups: Sequence[CacheGroup], block_bytes: Sequence[int], alignment: int
    ) -> None:
        self._settings = settings
        self._groups = groups
        self._block_bytes = block_bytes
        storages = [size // (2 * len(group.layers)) for group, size in zip(groups, block_bytes, strict=True)]
        self.multiples = [alignment // gcd(alignment, storage) for storage in storages]

    def of(self, num_tokens: int) -> list[int]:
        return [
            blocks_needed(self._held(group, num_tokens), self._settings.block_size) for group in self._groups
        ]

    def least(self, num_tokens: int) -> list[int]:
        """What must be allocated: block 0 too, rounded up to the alignment."""
        counts = zip(self.of(num_tokens), self.multiples, strict=True)
        return [-(-(count + 1) // multiple) * multiple for count, multiple in counts]

    def bytes_of(self, num_tokens: int) -> int:
        return sum(
            count * size for count, size in zip(self.least(num_tokens), self._block_bytes, strict=True)
        )

    def _held(self, group: CacheGroup, num_tokens: int) -> int:
        if group.window is None:
            return num_tokens
        # A step's chunk is written before what it leaves behind is released; its edges may straddle blocks.
        most = group.window + self._settings.max_num_batched_tokens + self._settings.block_size
        return min(num_tokens, most)


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
