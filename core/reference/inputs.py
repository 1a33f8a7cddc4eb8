"""Random inputs for kernel cases, and the tolerances their results deserve.

Inputs are scaled so that results are of order 1; absolute and relative tolerance are then the same number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.contracts.kernels import Tolerance

_UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}

EXACT: Mapping[str, Tolerance] = {dtype: Tolerance(relative=0.0, absolute=0.0) for dtype in _UNIT_ROUNDOFF}


def rounded(times: int) -> Mapping[str, Tolerance]:
    """Room for `times` roundings to the model dtype, counted over both versions together.

    A platform may fuse steps, and so round less often than the reference, or split them and round more. Sums
    are accumulated in float32 whatever the dtype, in any order; 64 of its roundings cover rows of thousands.
    Sums accumulated in bfloat16 or float16 fall outside.
    """
    bounds = {dtype: times * unit + 64 * _UNIT_ROUNDOFF["float32"] for dtype, unit in _UNIT_ROUNDOFF.items()}
    return {dtype: Tolerance(relative=bound, absolute=bound) for dtype, bound in bounds.items()}


class Inputs:
    """Normal random tensors of one dtype, the same for the same seed."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Mean 0, standard deviation `scale`."""
        return (torch.randn(shape, generator=self.generator) * scale).to(self.dtype)

    def near_one(self, *shape: int) -> Tensor:
        """What the weights of a norm look like."""
        return (1.0 + 0.1 * torch.randn(shape, generator=self.generator)).to(self.dtype)

    def integers(self, below: int, *shape: int) -> Tensor:
        """Uniform in [0, below), int64."""
        return torch.randint(below, shape, generator=self.generator)

    def weight(self, outputs: int, inputs: int) -> Tensor:
        """A projection that maps rows of order 1 to rows of order 1."""
        return self.normal(outputs, inputs, scale=inputs**-0.5)
