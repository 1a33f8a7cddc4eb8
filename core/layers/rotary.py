"""Rotary position embedding: tables of cosines and sines, computed once, looked up once a step.

Source: RoFormer, Su et al. 2021; the llama3 scaling is that of Llama 3.1's release.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import ConfigError

SCALINGS = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class RotarySettings:
    """theta is the base of the frequencies; `scaling` is the config's own block with its `rope_type`."""

    rotary_dim: int
    theta: float
    scaling: Mapping[str, Any]


def frequencies(settings: RotarySettings) -> Tensor:
    """Angles per position, [rotary_dim / 2], float32."""
    exponent = torch.arange(0, settings.rotary_dim, 2, dtype=torch.int64).float() / settings.rotary_dim
    inverse = 1.0 / (settings.theta**exponent)
    kind = settings.scaling.get("rope_type", "default")
    if kind == "linear":
        return inverse / settings.scaling["factor"]
    if kind == "llama3":
        return _llama3(inverse, settings.scaling)
    if kind != "default":
        raise ConfigError(
            f"rope_type is {kind!r}; this engine knows {', '.join(SCALINGS)}", setting="rope_scaling"
        )
    return inverse


def _llama3(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * inverse / factor + blend * inverse
    scaled = torch.where(wavelength > original / low, inverse / factor, inverse)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, scaled)


class RotaryTable:
    """Cosines and sines for every position of the context, each [context, rotary_dim / 2]."""

    def __init__(self, inverse: Tensor, context: int, dtype: torch.dtype, device: str) -> None:
        angles = torch.outer(torch.arange(context, dtype=torch.float32), inverse)
        self._cos = angles.cos().to(device, dtype)
        self._sin = angles.sin().to(device, dtype)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [N] -> (cos, sin), each [N, rotary_dim / 2], model dtype."""
        return self._cos[positions], self._sin[positions]
