"""The likeliest token of each row."""

from collections.abc import Iterator

import torch
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.reference.costs import stored_bytes
from core.reference.inputs import EXACT, Inputs


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [N, V] -> (largest [N], like logits; its token [N], int64): the first of equals, and NaN over all."""
    largest, token_ids = logits.max(dim=-1)
    return largest, token_ids


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, width in ((3, 1000), (1, 64), (0, 64), (1, 1), (2, 31), (33, 257), (1, 49152)):
        yield Case(name=f"{rows}x{width}", arguments=(inputs.normal(rows, width),))
    yield Case(name="equals", arguments=(inputs.integers(3, 9, 100).to(inputs.dtype),))
    yield Case(name="all alike", arguments=(torch.full((2, 50), -3.0, dtype=inputs.dtype),))


def _cost(case: Case) -> Cost:
    """The logits are read, and of each row its largest and the token's id written; V flops a row, comparisons."""
    (logits,) = case.arguments
    chosen = logits.shape[0] * (logits.element_size() + torch.int64.itemsize)
    return Cost(stored_bytes(logits) + chosen, logits.numel())


ARGMAX = Kernel(
    name="argmax",
    reference=argmax,
    cases=_cases,
    tolerance=EXACT,
    cost=_cost,
    summary="the likeliest token of each row, and its logit",
)
