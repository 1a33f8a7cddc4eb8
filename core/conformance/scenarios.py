"""Batches that attention must get right: ragged, at the edges of blocks, behind windows, on shared blocks.

Some bend their scores, and some lie amid garbage. Which of them a device is asked for, its manifest says: `attention`
reports the others as not supported.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.conformance.heads import head_dim_for
from core.contracts.attention import AttentionSpec
from core.contracts.platform import Capabilities

_HEAD_DIM = 64
_HEADS = ((4, 1, 64), (4, 4, 16), (8, 2, 80), (6, 2, 128))
"""(heads, heads for keys and values, size) besides the usual nine on three."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One batch.

    sequences                 (new tokens, length including them) each; decodes first
    window, soft_cap, alibi   as `AttentionShape` has them
    shared_blocks             how many leading blocks all sequences share; none of them is written in this step
    old_numbers               what no sequence holds is an old number instead of NaN
    rounds                    how often, by the same attention, in the same cache as the last round left it: each time
                              other sequences of these lengths, in other blocks
    """

    name: str
    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = _HEAD_DIM
    window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False
    shared_blocks: int = 0
    old_numbers: bool = False
    rounds: int = 1

    def spec(self, dtype: str, block_size: int) -> AttentionSpec:
        """What a model would ask of a platform for it."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_window=self.window,
            soft_cap=self.soft_cap,
            alibi=self.alibi,
            dtype=dtype,
            block_size=block_size,
        )


def scenarios(block_size: int, capabilities: Capabilities) -> Iterator[Scenario]:
    """Every scenario, its lengths chosen around this block size. Each size of heads that the device names is tried."""
    usual = head_dim_for(capabilities, _HEAD_DIM)
    for family in (_ragged, _windows, _shared, _soft_caps, _alibi, _garbage):
        for scenario in family(block_size):
            yield replace(scenario, head_dim=usual)
    known = {dim for _, _, dim in _HEADS}
    declared = tuple((4, 2, dim) for dim in capabilities.head_dims or () if dim not in known)
    for heads, kv_heads, head_dim in (*_HEADS, *declared):
        yield Scenario(
            name=f"{heads} heads of {head_dim} on {kv_heads}",
            sequences=_mixed(block_size),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
        )


def _mixed(b: int) -> tuple[tuple[int, int], ...]:
    """Decodes, chunks and a prompt, at the edges of blocks of b."""
    return ((1, 1), (1, b), (1, 3 * b + 1), (1, 2 * b - 1), (7, b + 9), (b, 2 * b), (b + 2, b + 2))


def _around(window: int, b: int) -> tuple[tuple[int, int], ...]:
    """Lengths at the edges of a window, and such that what it shows begins at the last or the first slot of a block."""
    decodes = tuple((1, max(1, window + n)) for n in (-1, 0, 1, b - 1, b))
    chunks = ((5, window + b + 3), (5, window + b + 4), (7, b + 9), (b, 4 * b + 3))
    prompts = ((b + 2, b + 2), (window + 1, window + 1), (3 * b, 3 * b))
    return (*decodes, (1, 3 * b + 1), *chunks, *prompts)


def _ragged(b: int) -> Iterator[Scenario]:
    yield Scenario(name="the first token of one sequence", sequences=((1, 1),))
    yield Scenario(
        name="decodes at block edges", sequences=tuple((1, n) for n in (max(1, b - 1), b, b + 1, 2 * b, 5))
    )
    yield Scenario(
        name="decodes of very different lengths", sequences=((1, 300), (1, 2), (1, 150), (1, 3), (1, 299))
    )
    yield Scenario(
        name="prompts at block edges", sequences=tuple((n, n) for n in (max(1, b - 1), b, b + 1, 2 * b, 2))
    )
    yield Scenario(
        name="chunks of longer prompts", sequences=((2, b + 2), (b, 2 * b), (b + 1, 4 * b), (5, b + 1))
    )
    yield Scenario(name="prompts, chunks and decodes", sequences=_mixed(b))
    yield Scenario(name="a long prompt and a long decode", sequences=((1, 400), (130, 390)))


def _windows(b: int) -> Iterator[Scenario]:
    for window in (1, 4, b, b + 3, 3 * b):
        yield Scenario(name=f"a window of {window}", sequences=_around(window, b), window=window)


def _shared(b: int) -> Iterator[Scenario]:
    yield Scenario(
        name="shared blocks",
        sequences=((1, 2 * b + 1), (1, 3 * b), (1, 2 * b + 5), (4, 2 * b + 4), (b, 3 * b)),
        shared_blocks=2,
    )


def _soft_caps(b: int) -> Iterator[Scenario]:
    """Scores of these scenarios are of order 1: the caps cut deep, bend, and leave them almost alone."""
    for cap in (0.5, 2.0, 30.0):
        yield Scenario(name=f"a soft cap of {cap:g}", sequences=_mixed(b), soft_cap=cap)
    window = b + 3
    yield Scenario(
        name=f"a soft cap of 2 behind a window of {window}",
        sequences=_around(window, b),
        soft_cap=2.0,
        window=window,
    )


def _alibi(b: int) -> Iterator[Scenario]:
    window, far = b + 3, ((1, 400), (130, 390))
    for heads, kv_heads in ((8, 2), (4, 4), (12, 4), (3, 1)):
        name = f"ALiBi, {heads} heads on {kv_heads}"
        yield Scenario(name=name, sequences=_mixed(b), num_heads=heads, num_kv_heads=kv_heads, alibi=True)
    yield Scenario(name="ALiBi over long distances", sequences=far, alibi=True)
    bent = Scenario(name="ALiBi and a soft cap of 2", sequences=_mixed(b), alibi=True, soft_cap=2.0)
    behind = {"sequences": _around(window, b), "window": window}
    yield bent
    yield replace(bent, name=f"ALiBi behind a window of {window}", soft_cap=None, **behind)
    yield replace(bent, name=f"{bent.name} behind a window of {window}", **behind)


def _garbage(b: int) -> Iterator[Scenario]:
    window = b + 3
    numbers = Scenario(name="old numbers in blocks of nobody", sequences=_mixed(b), old_numbers=True)
    yield numbers
    yield replace(numbers, name="old numbers behind a window", sequences=_around(window, b), window=window)
    yield Scenario(name="blocks that others had before", sequences=_mixed(b), rounds=2)
