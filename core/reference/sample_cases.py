"""Inputs to try `sample` on. Logits are float32 whatever the model's dtype."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core.contracts.kernels import Case

ALMOST_ONE = 1.0 - 2.0**-53
Row = tuple[float, int, float, float, float]
"""temperature, top_k, top_p, min_p, uniform"""

_MIXED: tuple[Row, ...] = (
    (0.0, 0, 1.0, 0.0, 0.5),
    (1.0, 0, 1.0, 0.0, 0.3),
    (0.7, 40, 1.0, 0.0, 0.6),
    (0.8, 0, 0.95, 0.0, 0.9),
    (1.5, 0, 1.0, 0.05, 0.2),
    (1.0, 20, 0.5, 0.1, 0.7),
    (1.0, 1, 1.0, 0.0, 0.99),
    (1.0, 10**6, 0.3, 0.0, 0.1),
    (1e-30, 0, 1.0, 0.0, 0.5),
    (2.0, 700, 0.999, 0.0, ALMOST_ONE),
    (1.0, 0, 1e-6, 0.0, ALMOST_ONE),
    (100.0, 0, 1.0, 0.0, 0.0),
)


def cases(dtype: str, seed: int) -> Iterator[Case]:
    """The same for every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def logits(rows: int, vocabulary: int, scale: float = 3.0) -> Tensor:
        return torch.randn(rows, vocabulary, generator=generator) * scale

    yield sampling_case("every kind of row", logits(len(_MIXED), 1000), _MIXED)
    yield sampling_case("one greedy row", logits(1, 320), _MIXED[:1])
    yield sampling_case("no rows", logits(0, 320), ())
    yield sampling_case("a vocabulary of one token", logits(len(_MIXED), 1), _MIXED)
    yield sampling_case("flat distributions over a large vocabulary", logits(len(_MIXED), 32001, 0.1), _MIXED)
    yield sampling_case(
        "ties, as logits rounded to bfloat16 have", (logits(len(_MIXED), 5000) * 2).round() / 2, _MIXED
    )
    allowed = torch.full((len(_MIXED), 777), -torch.inf)
    allowed[:, [5, 300, 776]] = torch.tensor([1.0, 2.0, 1.0])
    yield sampling_case("nearly every token forbidden", allowed, _MIXED)
    yield sampling_case(
        "unlimited, at both ends", logits(2, 1000), ((1.0, 0, 1.0, 0.0, 0.0), (1.0, 0, 1.0, 0.0, ALMOST_ONE))
    )


def sampling_case(name: str, logits: Tensor, rows: Sequence[Row]) -> Case:
    """logits [N, V] float32, and what each of the N rows asks for."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    temperature, top_k, top_p, min_p, uniform = table.unbind(dim=1)
    limits = (temperature.float(), top_k.long(), top_p.float(), min_p.float())
    return Case(name=name, arguments=(logits, *limits, uniform))
