"""Root-mean-square norm, alone or fused with the residual addition before it."""

from torch import Tensor

from core.contracts.model import Parts, Weights


class RMSNorm:
    """x [N, H] -> [N, H]. Source: Zhang and Sennrich 2019."""

    def __init__(self, weights: Weights, parts: Parts, name: str, size: int, eps: float) -> None:
        self._weight = weights.take(f"{name}.weight", size)
        self._eps = eps
        self._kernels = parts.kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum."""
        return self._kernels.add_rms_norm(x, residual, self._weight, self._eps)
