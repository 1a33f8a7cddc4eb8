"""Reading a decoder's config: what the families share, and the differences they may declare."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.contracts.attention import AttentionShape
from core.contracts.model import Architecture, GgufMapping, Model, ModelDescription, Parts, Weights
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.layers.decoder import DecoderLayerSettings
    from core.layers.rotary import RotarySettings

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """What a decoder needs beyond its description. `tied`: the head is the embedding's weight."""

    layer: "DecoderLayerSettings"
    rotary: "RotarySettings"
    tied: bool


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What sets a family apart from Llama. Each is read from the config.

    windows  per layer, the sliding window or None
    """

    qkv_bias: Callable[[Config], bool] = lambda config: bool(config.get("attention_bias", False))
    output_bias: Callable[[Config], bool] = lambda config: bool(config.get("attention_bias", False))
    qk_norm: bool = False
    windows: Callable[[Config], tuple[int | None, ...]] = lambda config: (
        (None,) * int(config["num_hidden_layers"])
    )


def decoder(
    name: str, family: str, differences: Differences, gguf: GgufMapping | None = None
) -> Architecture:
    """The architecture of a decoder family."""

    def describe_family(config: Config) -> ModelDescription:
        return describe(name, config, differences)

    return Architecture(name=name, family=family, describe=describe_family, build=_build, gguf=gguf)


def _build(description: ModelDescription, weights: Weights, parts: Parts) -> Model:
    from models.decoder import Decoder

    return Decoder(description, weights, parts)


def describe(name: str, config: Config, differences: Differences) -> ModelDescription:
    """config.json -> description. Raises ConfigError naming a key that is missing or unacceptable."""
    hidden, layers = _positive(config, "hidden_size"), _positive(config, "num_hidden_layers")
    heads = _positive(config, "num_attention_heads")
    kv_heads = _positive(config, "num_key_value_heads", heads)
    head_dim = _positive(config, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act is {config['hidden_act']!r}; {name} here computes silu")
    if config.get("mlp_bias", False):
        raise ConfigError(f"mlp_bias is true; {name} here has no biases in its MLP")
    shapes = tuple(
        AttentionShape(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            sliding_window=window,
        )
        for window in differences.windows(config)
    )
    for shape in shapes:
        if shape.sliding_window is not None:
            _positive(config, "sliding_window")
    settings = _settings(config, differences, hidden, head_dim)
    vocabulary = _positive(config, "vocab_size")
    attention = hidden * head_dim * (heads + kv_heads) * 2
    per_layer = attention + 3 * hidden * settings.layer.intermediate_size + 2 * hidden
    return ModelDescription(
        architecture=name,
        vocab_size=vocabulary,
        hidden_size=hidden,
        context=_positive(config, "max_position_embeddings", 2048),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        layers=shapes,
        num_parameters=layers * per_layer + vocabulary * hidden * (1 if settings.tied else 2) + hidden,
        settings=settings,
    )


def _settings(config: Config, differences: Differences, hidden: int, head_dim: int) -> DecoderSettings:
    from core.layers.decoder import DecoderLayerSettings
    from core.layers.rotary import RotarySettings

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"config.json: rope_parameters is {rope!r:.80}; an object is expected")
    rope = dict(rope)
    rope.setdefault("rope_type", rope.get("type", "default"))
    theta = _number({**config, **rope}, "rope_theta", 10000.0)
    return DecoderSettings(
        layer=DecoderLayerSettings(
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size"),
            norm_eps=_number(config, "rms_norm_eps", 1e-6),
            qkv_bias=differences.qkv_bias(config),
            output_bias=differences.output_bias(config),
            head_norms=differences.qk_norm,
        ),
        rotary=RotarySettings(rotary_dim=head_dim, theta=theta, scaling=rope),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _number(config: Config, key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value > 0)
    ):
        raise ConfigError(f"config.json: {key} is {value!r:.80}; a number above 0 is expected")
    return float(value)


def _positive(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}; a whole number above 0 is expected")
    return value
