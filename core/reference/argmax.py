"""The likeliest token of each row."""

from collections.abc import Iterator

import torch
from torch import Tensor

from core.contracts.kernels import Case, Kernel
from core.reference.inputs import EXACT, Inputs


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [N, V] -> (largest [N], like logits; its token [N], int64): the first of equals, and NaN over all."""
    largest, token_ids = logits.max(dim=-1)
    return largest, token_ids


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, width in ((0, 64), (1, 1), (1, 64), (2, 31), (3, 1000), (33, 257), (1, 49152)):
        yield Case(name=f"{rows}x{width}", arguments=(inputs.normal(rows, width),))
    yield Case(name="equals", arguments=(inputs.integers(3, 9, 100).to(inputs.dtype),))
    yield Case(name="all alike", arguments=(torch.full((2, 50), -3.0, dtype=inputs.dtype),))


ARGMAX = Kernel(
    name="argmax",
    reference=argmax,
    cases=_cases,
    tolerance=EXACT,
    summary="the likeliest token of each row, and its logit",
)
