"""Norms, made of the kernels they are given."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.contracts.kernels import Kernels
from core.contracts.model import Weights
from core.layers.settings import NormSettings

Norm = Callable[[Tensor], Tensor]


def take_norm(weights: Weights, settings: NormSettings) -> Tensor | None:
    """A norm's weight as it multiplies, [size] or [heads, size]; None when it has none."""
    if not settings.weight:
        return None
    if settings.listed and settings.heads is not None:
        each = [weights.take(f"{settings.name}.{i}.weight", settings.size) for i in range(settings.heads)]
        return torch.stack(each)
    shape = (settings.size,) if settings.heads is None else (settings.heads, settings.size)
    if not settings.plus_one:
        return weights.take(f"{settings.name}.weight", *shape)
    taken = weights.take(f"{settings.name}.weight", *shape)
    return (taken.float() + 1).to(taken.dtype)


def make_norm(weights: Weights, kernels: Kernels, settings: NormSettings | None) -> Norm:
    """A function x [..., size] -> like x. None leaves x as it is."""
    if settings is None:
        return lambda x: x
    weight = take_norm(weights, settings)
    bias = weights.take(f"{settings.name}.bias", settings.size) if settings.bias else None
    return norm_of(kernels, settings, weight, bias)


def norm_of(kernels: Kernels, settings: NormSettings, weight: Tensor | None, bias: Tensor | None) -> Norm:
    """The same, of weights that were taken before."""
    eps = settings.eps
    if weight is not None and weight.dim() == 2:
        plain = norm_of(kernels, settings, None, None)
        return lambda x: plain(x) * weight
    if settings.kind == "layer":
        return lambda x: kernels.layer_norm(x, weight, bias, eps)
    if weight is None:
        return lambda x: kernels.rms_norm(x, x.new_ones(x.shape[-1]), eps)
    return lambda x: kernels.rms_norm(x, weight, eps)


class Entry:
    """What a half of a layer begins with: the last addition to the stream, and the norm of their sum."""

    def __init__(self, weights: Weights, kernels: Kernels, settings: NormSettings | None) -> None:
        self._kernels = kernels
        self._eps = 0.0 if settings is None else settings.eps
        self._fused, self._wide = None, settings is not None and settings.wide
        if settings is not None and settings.kind == "rms" and settings.weight and not settings.wide:
            self._fused = take_norm(weights, settings)
            self._norm = norm_of(kernels, settings, self._fused, None)
        else:
            self._norm = make_norm(weights, kernels, settings)

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [N, H] that was added last, residual [N, H] or None -> (the norm of the stream, the stream)."""
        if self._wide:
            stream = x.float() if residual is None else x + residual
            return self._norm(stream.to(x.dtype)), stream
        if residual is None:
            return self._norm(x), x
        if self._fused is not None:
            return self._kernels.add_rms_norm(x, residual, self._fused, self._eps)
        stream = x + residual
        return self._norm(stream), stream
