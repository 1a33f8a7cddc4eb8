"""How well two texts go together: by a model that reads both, or by the angle between their embeddings."""

from collections.abc import Sequence
from functools import cache
from math import nan, sqrt
from operator import mul
from typing import TypeVar

from core.contracts.model import Pooling
from core.errors import RequestError
from core.outputs import floats

Item = TypeVar("Item")


def reads_pairs(pooling: Pooling) -> bool:
    """Whether a score is what the model makes of both texts; False: it is made of two embeddings.

    Raises RequestError for a model with more labels than one.
    """
    if pooling.labels is None:
        return False
    if len(pooling.labels) != 1:
        raise RequestError(
            f"the model gives numbers for {len(pooling.labels)} labels; a score needs one with a single label, or one "
            "that makes embeddings",
            parameter="model",
        )
    return True


def paired(first: Sequence[Item], second: Sequence[Item], names: tuple[str, str]) -> list[tuple[Item, Item]]:
    """Each of the first with its own of the second; a single first one with every second one.

    names  of the parameters, for the RequestError that is raised when the numbers do not fit
    """
    if len(first) == 1:
        first = list(first) * len(second)
    if not second or len(first) != len(second):
        raise RequestError(
            f"{names[0]} has {len(first)} texts and {names[1]} {len(second)}; one for all or one for each is expected",
            parameter=names[0],
        )
    return list(zip(first, second, strict=True))


def cosines(pairs: Sequence[tuple[bytes | None, bytes | None]]) -> list[float]:
    """Of each two embeddings, as `RequestOutput.pooled` holds them; 0 when one is zero, NaN when one is not there."""
    measured = cache(_measured)  # one text may go with many
    return [nan if a is None or b is None else _cosine(measured(a), measured(b)) for a, b in pairs]


def _measured(pooled: bytes) -> tuple[tuple[float, ...], float]:
    """The numbers and their Euclidean length."""
    numbers = floats(pooled)
    return numbers, sqrt(sum(map(mul, numbers, numbers)))


def _cosine(first: tuple[tuple[float, ...], float], second: tuple[tuple[float, ...], float]) -> float:
    (a, a_length), (b, b_length) = first, second
    return sum(map(mul, a, b)) / (a_length * b_length) if a_length and b_length else 0.0
