"""Token embedding."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.reference.costs import stored_bytes
from core.reference.inputs import EXACT, Inputs


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """token_ids [N] int64, weight [V, H] -> [N, H]. Ids are in [0, V)."""
    return F.embedding(token_ids, weight)


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, vocabulary, hidden in ((3, 320, 100), (1, 1, 16), (0, 8, 16), (17, 1000, 576)):
        ids = inputs.integers(vocabulary, rows)
        if rows > 1:
            ids[0], ids[1] = vocabulary - 1, 0
        yield Case(name=f"{rows}x{vocabulary}x{hidden}", arguments=(ids, inputs.normal(vocabulary, hidden)))


def _cost(case: Case) -> Cost:
    """The ids are read, and once each row of the table that they name; N rows are written; no flops."""
    token_ids, weight = case.arguments
    rows = len(set(token_ids.tolist())) + len(token_ids)
    return Cost(stored_bytes(token_ids) + rows * weight.shape[1] * weight.element_size(), 0)


EMBEDDING = Kernel(
    name="embedding",
    reference=embedding,
    cases=_cases,
    tolerance=EXACT,
    cost=_cost,
    summary="rows of a table, by token id",
)
