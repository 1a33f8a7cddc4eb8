"""Rotary position embedding: tables of cosines and sines, computed once, looked up once a step.

Some scalings depend on how long a sequence is. Keys are kept and shared, so theirs must not: it is the longest sequence
that will be computed which decides, once, for all.

Source: RoFormer, Su et al. 2021; linear scaling and dynamic NTK as transformers defines them; YaRN, Peng et al. 2023;
LongRoPE, Ding et al. 2024; the llama3 scaling is that of Llama 3.1's release.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from core.errors import ConfigError
from core.layers.settings import RotarySettings

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines of a step's tokens, [N, rotary_dim / 2] each, model dtype."""


def frequencies(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    """Angles per position, [rotary_dim / 2], float32, and what multiplies cosines and sines.

    longest  sequence that will be computed, in tokens
    Raises ConfigError for a rope_type that nobody here knows.
    """
    kind = settings.scaling.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise ConfigError(
            f"rope_type is {kind!r}; this engine knows {', '.join(_SCALINGS)}", setting="rope_scaling"
        )
    return _SCALINGS[kind](settings, longest)


def _inverse(settings: RotarySettings, theta: float | None = None) -> Tensor:
    exponent = torch.arange(0, settings.rotary_dim, 2, dtype=torch.int64).float() / settings.rotary_dim
    return 1.0 / ((settings.theta if theta is None else theta) ** exponent)


def _default(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    return _inverse(settings), 1.0


def _linear(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    return _inverse(settings) / settings.scaling["factor"], 1.0


def _dynamic(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    """The base grows with what exceeds the context that the model was made for."""
    factor, dim = settings.scaling["factor"], settings.rotary_dim
    excess = max(longest, settings.context) / settings.context
    return _inverse(settings, settings.theta * (factor * excess - (factor - 1)) ** (dim / (dim - 2))), 1.0


def _llama3(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    scaling, inverse = settings.scaling, _inverse(settings)
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * inverse / factor + blend * inverse
    scaled = torch.where(wavelength > original / low, inverse / factor, inverse)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, scaled), 1.0


def _yarn(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    """Frequencies that turn often within the original context are kept, those that turn rarely are stretched."""
    scaling, dim = settings.scaling, settings.rotary_dim
    original = scaling.get("original_max_position_embeddings") or settings.context
    factor = scaling.get("factor") or settings.context / original

    def turning(turns: float) -> float:
        """Which frequency, counted in pairs, turns so often."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(settings.theta))

    low, high = turning(scaling.get("beta_fast") or 32), turning(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low if high > low else 0.001)
    stretched = ramp.clamp(0, 1)
    inverse = _inverse(settings)
    return inverse / factor * stretched + inverse * (1 - stretched), _yarn_factor(scaling, factor)


def _yarn_factor(scaling: Mapping[str, Any], factor: float) -> float:
    given, mscale, all_dim = (scaling.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    if mscale and all_dim:
        return yarn_scale(factor, mscale) / yarn_scale(factor, all_dim)
    return yarn_scale(factor)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """How much YaRN sharpens attention over a context stretched so far; Peng et al. 2023, section 3.4."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(settings: RotarySettings, longest: int) -> tuple[Tensor, float]:
    """Each frequency has a divisor of its own, and another for sequences beyond the original context."""
    scaling = settings.scaling
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or settings.context / original
    length = "long" if longest > original else "short"
    divisors, given = (
        scaling[f"{length}_factor"],
        scaling.get(f"{length}_mscale", scaling.get("attention_factor")),
    )
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    inverse = _inverse(settings) / torch.tensor(divisors, dtype=torch.float32)
    return inverse, usual if given is None else float(given)


_SCALINGS: Mapping[str, Callable[[RotarySettings, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
SCALINGS = tuple(_SCALINGS)
"""Every `rope_type` that is known."""


class RotaryTable:
    """Cosines and sines for every position of the context, each [context, rotary_dim / 2]."""

    def __init__(
        self, inverse: Tensor, context: int, dtype: torch.dtype, device: str, scale: float = 1.0
    ) -> None:
        angles = torch.outer(torch.arange(context, dtype=torch.float32), inverse)
        self._cos = (angles.cos() * scale).to(device, dtype)
        self._sin = (angles.sin() * scale).to(device, dtype)

    def __call__(self, positions: Tensor) -> Rotation:
        """positions [N] -> (cos, sin), each [N, rotary_dim / 2], model dtype."""
        return self._cos[positions], self._sin[positions]
