"""What stands between the two products of an MLP without a gate."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.reference.costs import ACTIVATION_FLOPS, stored_bytes
from core.reference.inputs import Inputs, rounded

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
        "silu": F.silu,
        "tanh": torch.tanh,
    }
)
"""Each by its name; "gelu_tanh" is the approximation that GPT-2 brought, "relu2" the square of relu."""


def activation(x: Tensor, kind: str) -> Tensor:
    """x [..., I], kind one of ACTIVATIONS -> like x, elementwise; computed in float32 and rounded once."""
    return ACTIVATIONS[kind](x.float()).to(x.dtype)


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for kind in ACTIVATIONS:
        yield Case(name=f"{kind} of 3x33", arguments=(inputs.normal(3, 33), kind))
        yield Case(name=f"{kind} of large", arguments=(inputs.normal(2, 16).sign() * 100, kind))
    halves = inputs.normal(5, 96)
    yield Case(name="half of a stacked projection", arguments=(halves[:, :48], "gelu_tanh"))
    yield Case(name="no rows", arguments=(inputs.normal(0, 64), "gelu"))
    yield Case(name="1x64", arguments=(inputs.normal(1, 64), "relu2"))
    yield Case(name="17x1536", arguments=(inputs.normal(17, 1536), "gelu"))


def _cost(case: Case) -> Cost:
    """x is read and as much written; 4 flops an element, of relu 1."""
    x, kind = case.arguments
    return Cost(2 * stored_bytes(x), (1 if kind == "relu" else ACTIVATION_FLOPS) * x.numel())


ACTIVATION = Kernel(
    name="activation",
    reference=activation,
    cases=_cases,
    tolerance=rounded(8),
    cost=_cost,
    summary="a function of each element, by its name: gelu, relu and their kin",
)
