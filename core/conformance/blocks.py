"""What is done to blocks of the cache: copied, saved and restored, discarded. Everything else must stay as it is.

Blocks lie as the platform's own attention lays them out, and hold random bytes, so that every NaN there is occurs
among them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from core.conformance.compare import difference
from core.conformance.layers import Layers, with_blocks
from core.conformance.paging import padded, paged_batch
from core.contracts.attention import Attention, LayerCache
from core.contracts.memory import Memory
from core.contracts.platform import Capabilities, Device
from core.errors import ContractViolation
from core.reference.inputs import rounded

Trial = tuple[str, str, Callable[[], str]]
"""(method, what of it, a function that returns what is wrong, or "")."""


def block_trials(
    memory: Memory, attention: Attention, device: Device, capabilities: Capabilities, seed: int
) -> list[Trial]:
    """What to try with blocks as this attention lays them out. Allocates the caches."""
    layers = Layers(memory, attention, capabilities.alignment_bytes, seed)
    attended = partial(_attended, attention, device, capabilities, seed)
    return [
        ("copy_blocks", "", partial(_copies, memory, layers)),
        ("restore_blocks", "the same ones", partial(_restores, memory, layers, elsewhere=False)),
        ("restore_blocks", "others", partial(_restores, memory, layers, elsewhere=True)),
        ("restore_blocks", "too few", partial(_refuses_counts, memory, layers)),
        ("discard_blocks", "", partial(_discards, memory, layers)),
        ("discard_blocks", "written again", partial(_writes_again, memory, layers, attended)),
        ("statistics", "moved again and again", partial(_keeps_nothing, memory, layers)),
    ]


def _copies(memory: Memory, layers: Layers) -> str:
    before, (a, b, c, *to) = layers.fill(), layers.some(7)
    pairs = [(a, to[0]), (b, to[1]), (a, to[2]), (c, to[3])]
    memory.copy_blocks(layers.given, pairs)
    return layers.difference(with_blocks(before, before, pairs, layers.axis))


def _restores(memory: Memory, layers: Layers, elsewhere: bool) -> str:
    before, (a, b, c, d, *free) = layers.fill(), layers.some(7)
    blocks = [a, b, c, d]
    saved = memory.save_blocks(layers.given, blocks)
    if saved.count != len(blocks) or len(saved.layers) != len(layers.given):
        return f"saved {saved.count} blocks of {len(saved.layers)} layers, expected 4 of {len(layers.given)}"
    if not all(kept.is_cpu for layer in saved.layers for kept in layer):
        return "what was saved is not on the host"
    if problem := layers.difference(before):
        return f"saving changed what it saves: {problem}"
    now, targets = layers.fill(), [free[0], a, free[1], free[2]] if elsewhere else blocks
    memory.restore_blocks(layers.given, targets, saved)
    moved = list(zip(blocks, targets, strict=True))
    return layers.difference(with_blocks(now, before, moved, layers.axis))


def _refuses_counts(memory: Memory, layers: Layers) -> str:
    layers.fill()
    blocks = layers.some(3)
    saved = memory.save_blocks(layers.given, blocks)
    before = layers.fill()
    try:
        memory.restore_blocks(layers.given, blocks[:2], saved)
    except ContractViolation:
        return layers.difference(before)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}; ContractViolation is expected"
    return "restored 3 saved blocks into 2"


def _discards(memory: Memory, layers: Layers) -> str:
    before, blocks = layers.fill(), layers.some(3)
    memory.discard_blocks(layers.given, blocks)
    # Whatever is in them now is right.
    return layers.difference(with_blocks(before, layers.bits(), [(b, b) for b in blocks], layers.axis))


def _writes_again(memory: Memory, layers: Layers, attended: Callable[[LayerCache, list[int]], Tensor]) -> str:
    layers.fill()
    blocks, cache = layers.some(2), layers.given[0]
    first = attended(cache, blocks)
    memory.discard_blocks(layers.given, blocks)
    again = attended(cache, blocks)
    name = str(again.dtype).removeprefix("torch.")
    problem = difference(again, first.cpu(), rounded(8)[name])
    return f"attention to them, before they were discarded and after: {problem}" if problem else ""


def _keeps_nothing(memory: Memory, layers: Layers) -> str:
    layers.fill()
    (a, b, c), taken = layers.some(3), list[int]()
    for _ in range(4):
        memory.restore_blocks(layers.given, [b], memory.save_blocks(layers.given, [a]))
        memory.copy_blocks(layers.given, [(a, c)])
        memory.discard_blocks(layers.given, [c])
        taken.append(memory.statistics().allocated)
    # What the first time leaves behind may be room that the next ones use.
    rise = taken[-1] - taken[0]
    return f"allocated rose by {rise:,} bytes while the same blocks were moved 3 times" if rise > 0 else ""


def _attended(
    attention: Attention,
    device: Device,
    capabilities: Capabilities,
    seed: int,
    cache: LayerCache,
    blocks: list[int],
) -> Tensor:
    """One prompt written into these blocks, all but their last three slots, and attended to."""
    spec, count = attention.spec, max(1, len(blocks) * attention.spec.block_size - 3)
    batch = paged_batch(
        [blocks],
        [count],
        [count],
        block_size=spec.block_size,
        token_multiple=capabilities.scheduling.token_multiple,
        torch_device=device.torch_device,
    )
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    query, key, value = (
        padded(
            torch.randn(count, heads, spec.head_dim, generator=generator).to(dtype),
            len(batch.slot_mapping),
            device.torch_device,
        )
        for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    )
    plan = attention.plan(batch)
    attention.write(key, value, cache, plan)
    return attention.attend(query, cache, plan)[:count]
