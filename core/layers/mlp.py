"""The feed-forward half of a layer, with a gate or without."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.contracts.kernels import Kernels
from core.contracts.model import Parts, Weights
from core.contracts.quantization import Weight
from core.layers.settings import MlpSettings


def make_mlp(
    weights: Weights, parts: Parts, hidden: int, settings: MlpSettings
) -> Callable[[Tensor], Tensor]:
    """A function x [N, H] -> [N, H]."""
    kernels = parts.kernels
    up = take_up(weights, hidden, settings)
    down = take_down(weights, hidden, settings)
    if settings.gated and settings.activation == "silu" and not settings.bias:
        return kernels.gated_mlp(up, down)
    up_bias = take_biases(weights, settings.up, _sizes(settings)) if settings.bias else None
    down_bias = weights.take(f"{settings.down}.bias", hidden) if settings.bias else None
    return _composed(kernels, settings, (up, up_bias), (down, down_bias))


def take_up(weights: Weights, hidden: int, settings: MlpSettings) -> Weight:
    """What goes in, [I, H], or with a gate [2 * I, H], gate first."""
    names = [f"{name}.weight" for name in settings.up]
    return weights.take_linear(names, _sizes(settings), hidden, transposed=settings.transposed)


def take_down(weights: Weights, hidden: int, settings: MlpSettings) -> Weight:
    """What goes out, [H, I]."""
    wide = settings.intermediate_size
    return weights.take_linear([f"{settings.down}.weight"], [hidden], wide, transposed=settings.transposed)


def _sizes(settings: MlpSettings) -> list[int]:
    rows = settings.intermediate_size * (2 if settings.gated else 1)
    return [rows // len(settings.up)] * len(settings.up)


def take_biases(weights: Weights, names: tuple[str, ...], sizes: list[int]) -> Tensor:
    """The biases of projections, one behind the other."""
    return torch.cat([weights.take(f"{name}.bias", size) for name, size in zip(names, sizes, strict=True)])


def _composed(
    kernels: Kernels,
    settings: MlpSettings,
    up: tuple[Weight, Tensor | None],
    down: tuple[Weight, Tensor | None],
) -> Callable[[Tensor], Tensor]:
    enter, leave, kind = kernels.linear(*up), kernels.linear(*down), settings.activation
    if not settings.gated:
        return lambda x: leave(kernels.activation(enter(x), kind))
    if kind == "silu":
        return lambda x: leave(kernels.silu_and_mul(enter(x)))

    def apply(x: Tensor) -> Tensor:
        gate, value = enter(x).chunk(2, dim=-1)
        return leave(kernels.activation(gate, kind) * value)

    return apply
