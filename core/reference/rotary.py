"""Rotary position embedding, the half-split form. Source: RoFormer, Su et al. 2021."""

from collections.abc import Iterator

import torch
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.reference.costs import ROTARY_FLOPS, stored_bytes
from core.reference.inputs import Inputs, rounded


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """query [N, Hq, D], key [N, Hkv, D], cos and sin [N, R / 2] -> new tensors like query and key.

    Of each head, element i < R / 2 is rotated with element i + R / 2; those from R on pass through. All four
    have the model dtype; the rotation is computed in float32 and rounded once.
    """
    half = cos.shape[-1]
    cos, sin = cos.float()[:, None], sin.float()[:, None]  # [N, 1, R / 2]
    both = torch.cat((query, key), dim=1).float()  # [N, Hq + Hkv, D]
    first, second = both[..., :half], both[..., half : 2 * half]
    parts = (first * cos - second * sin, second * cos + first * sin, both[..., 2 * half :])
    turned = torch.cat(parts, dim=-1).to(query.dtype)
    return turned[:, : query.shape[1]], turned[:, query.shape[1] :]


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    shapes = ((3, 9, 3, 64, 64), (1, 1, 1, 64, 64), (0, 4, 2, 16, 16), (17, 8, 1, 80, 20), (5, 3, 3, 7, 6))
    for rows, heads, kv_heads, head_dim, rotary_dim in shapes:
        angles = inputs.integers(4096, rows, 1) * 10000.0 ** -torch.linspace(0, 1, rotary_dim // 2)
        # As layers make them: views into one stacked projection.
        stacked = inputs.normal(rows, (heads + 2 * kv_heads) * head_dim)
        query, key, _ = stacked.tensor_split([heads * head_dim, (heads + kv_heads) * head_dim], dim=-1)
        yield Case(
            name=f"{rows}x{heads}/{kv_heads}x{head_dim}, {rotary_dim} rotated",
            arguments=(
                query.view(rows, heads, head_dim),
                key.view(rows, kv_heads, head_dim),
                angles.cos().to(inputs.dtype),
                angles.sin().to(inputs.dtype),
            ),
        )


def _cost(case: Case) -> Cost:
    """Queries, keys, cosines and sines are read, queries and keys written; 3 flops an element that is rotated."""
    query, key, cos, sin = case.arguments
    rotated = 2 * cos.numel() * (query.shape[1] + key.shape[1])
    return Cost(2 * stored_bytes(query, key) + stored_bytes(cos, sin), ROTARY_FLOPS * rotated)


ROTARY = Kernel(
    name="rotary",
    reference=rotary,
    cases=_cases,
    tolerance=rounded(8),
    cost=_cost,
    summary="rotates queries and keys by their positions",
)
