"""Batches that attention must get right: ragged, at the edges of blocks, behind windows, on shared blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

from core.contracts.attention import AttentionSpec


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One batch.

    sequences      (new tokens, length including them) each
    shared_blocks  how many leading blocks all sequences share; none of them is written in this step
    """

    name: str
    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    window: int | None = None
    shared_blocks: int = 0

    def spec(self, dtype: str, block_size: int) -> AttentionSpec:
        """What a model would ask of a platform for it."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_window=self.window,
            dtype=dtype,
            block_size=block_size,
        )


def scenarios(block_size: int) -> Iterator[Scenario]:
    """Every scenario, its lengths chosen around this block size."""
    b = block_size
    mixed = ((1, 1), (1, b), (1, 3 * b + 1), (1, 2 * b - 1), (7, b + 9), (b, 2 * b), (b + 2, b + 2))
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
    yield Scenario(name="prompts, chunks and decodes", sequences=mixed)
    yield Scenario(name="a long prompt and a long decode", sequences=((1, 400), (130, 390)))
    for heads, kv_heads, head_dim in ((4, 1, 64), (4, 4, 16), (8, 2, 80), (6, 2, 128)):
        yield Scenario(
            name=f"{heads} heads of {head_dim} on {kv_heads}",
            sequences=mixed,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
        )
    for window in (1, 4, b, b + 3, 3 * b):
        edges = tuple((1, max(1, window + n)) for n in (-1, 0, 1, b))
        chunks = ((7, b + 9), (b + 2, b + 2), (b, 4 * b + 3), (3 * b, 3 * b))
        yield Scenario(
            name=f"a window of {window}", sequences=(*edges, (1, 3 * b + 1), *chunks), window=window
        )
    yield Scenario(
        name="shared blocks",
        sequences=((1, 2 * b + 1), (1, 3 * b), (1, 2 * b + 5), (4, 2 * b + 4), (b, 3 * b)),
        shared_blocks=2,
    )
