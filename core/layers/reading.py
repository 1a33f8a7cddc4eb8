"""Reading a decoder's config: each part of its settings, with Llama's answers where a family gives none of its own.

A family is a function that takes a `Reading` and returns the description of its model; it names only what differs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from core.contracts.attention import AttentionShape
from core.contracts.model import (
    Architecture,
    GgufMapping,
    LayerShape,
    Model,
    ModelDescription,
    Parts,
    Weights,
)
from core.contracts.versions import VERSIONS
from core.errors import ConfigError
from core.layers.config import Config, ConfigReading
from core.layers.settings import (
    AttentionSettings,
    DecoderSettings,
    LayerSettings,
    MlpSettings,
    NormSettings,
    RotarySettings,
)

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}
"""What configs call activations, and which of ours each is."""


class Reading(ConfigReading):
    """A decoder's config. Every method raises ConfigError naming a key that is missing or unacceptable."""

    @cached_property
    def hidden(self) -> int:
        """Width of the stream."""
        return self.positive("hidden_size")

    @cached_property
    def num_layers(self) -> int:
        return self.positive("num_hidden_layers")

    @cached_property
    def heads(self) -> int:
        """Of queries."""
        return self.positive("num_attention_heads")

    @cached_property
    def kv_heads(self) -> int:
        """Of keys and values; a divisor of `heads`."""
        heads = self.positive("num_key_value_heads", self.heads)
        if self.heads % heads:
            raise ConfigError(
                f"num_attention_heads {self.heads} is not a multiple of num_key_value_heads {heads}"
            )
        return heads

    @cached_property
    def head_dim(self) -> int:
        return self.positive("head_dim", self.hidden // self.heads)

    @cached_property
    def intermediate(self) -> int:
        return self.positive("intermediate_size")

    @cached_property
    def vocabulary(self) -> int:
        return self.positive("vocab_size")

    @cached_property
    def context(self) -> int:
        """Longest sequence that the model was trained for, in tokens."""
        return self.positive("max_position_embeddings", 2048)

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """The same window for all layers, when the config names one."""
        window = None if self.value("sliding_window") is None else self.positive("sliding_window")
        return (window,) * self.num_layers

    @cached_property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The window of the layers that `layer_types` calls sliding, when the config has both."""
        kinds = self.value("layer_types")
        if kinds is None:
            return (None,) * self.num_layers
        self._check_kinds(kinds)
        return tuple(
            window if kind == "sliding_attention" else None
            for kind, window in zip(kinds, self.windows, strict=False)
        )

    def windows_but_every(self, count: int) -> tuple[int | None, ...]:
        """The window of the layers that `layer_types` calls sliding; in older configs, of all but each `count`th."""
        if self.value("layer_types") is not None:
            return self.layer_windows
        return tuple(window if (i + 1) % count else None for i, window in enumerate(self.windows))

    def _check_kinds(self, kinds: Any) -> None:
        known = ("full_attention", "sliding_attention")
        given: list[Any] = list(kinds) if isinstance(kinds, Sequence) else [kinds]  # pyright: ignore[reportUnknownArgumentType]
        if len(given) < self.num_layers or any(kind not in known for kind in given):
            raise self.refusal(
                "layer_types", kinds, f"{self.num_layers} of {' and '.join(known)} are expected"
            )

    def arranged(self, name: str, usual: Any) -> Any:
        """How weights are stored, by a field of the settings or a name of the family's own.

        Other formats than safetensors have some otherwise, and their config says so: `arrangement`.
        """
        arrangement: Config = self._config.get("arrangement") or {}
        return arrangement.get(name, usual)

    def _arranged(self, fields: Config) -> dict[str, Any]:
        return {name: self.arranged(name, value) for name, value in fields.items()}

    def shape(self, **others: Any) -> AttentionShape:
        """What a layer keeps of its sequences; `others` are fields of AttentionShape."""
        sizes: dict[str, Any] = {
            "num_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "scale": self.head_dim**-0.5,
        }
        return AttentionShape(**{**sizes, **others})

    def norm(
        self, name: str, *, eps: str = "rms_norm_eps", size: int | None = None, **others: Any
    ) -> NormSettings:
        """A norm of the stream. eps  the key that has it; `others` are fields of NormSettings."""
        fields = self._arranged(others)
        return NormSettings(name=name, size=size or self.hidden, eps=self.number(eps, 1e-6), **fields)

    def layer_norm(self, name: str) -> NormSettings:
        """A layer norm of the stream, with a bias."""
        return self.norm(name, eps="layer_norm_eps", kind="layer", bias=True)

    def rotary(
        self,
        *,
        block: Mapping[str, Any] | None = None,
        share: float = 1.0,
        dim: int | None = None,
        interleaved: bool = False,
    ) -> RotarySettings:
        """How positions turn queries and keys.

        block  the config's own about rotation; None: `rope_parameters`, or `rope_scaling` as it was called once
        share  of a head that is rotated, where the config does not say it
        dim    numbers of a head that are rotated, whatever the config says
        """
        given: Any = (
            self.value("rope_scaling") or self.value("rope_parameters") or {} if block is None else block
        )
        if not isinstance(given, Mapping):
            raise self.refusal("rope_parameters", given, "an object is expected")
        scaling: dict[str, Any] = dict(given)  # pyright: ignore[reportUnknownArgumentType]
        scaling.setdefault("rope_type", scaling.get("type", "default"))
        if self.value("original_max_position_embeddings") is not None:
            original = self.positive("original_max_position_embeddings")
            scaling.setdefault("original_max_position_embeddings", original)
        outside = {name: self.value(name) for name in ("rope_theta", "partial_rotary_factor")}
        own = Reading(self.architecture, scaling, outside)
        share = own.number("partial_rotary_factor", share)
        rotary_dim = dim or self.positive("rotary_dim", int(self.head_dim * share))
        self.check_scaling(scaling, rotary_dim)
        return RotarySettings(
            rotary_dim=rotary_dim,
            theta=own.number("rope_theta", 10000.0),
            scaling=scaling,
            context=self.context,
            interleaved=interleaved,
        )

    def attention(self, prefix: str, **others: Any) -> AttentionSettings:
        """Llama's attention under `prefix`; `others` are fields of AttentionSettings."""
        parts = ("qkv",) if self.arranged("fused", usual=False) else ("q", "k", "v")
        llama: dict[str, Any] = {
            "qkv": tuple(f"{prefix}.{part}_proj" for part in parts),
            "output": f"{prefix}.o_proj",
            "qkv_bias": self.flag("attention_bias"),
            "output_bias": self.flag("attention_bias"),
        }
        if "rotary" not in others:
            llama["rotary"] = self.rotary()
        return AttentionSettings(**{**llama, **self._arranged(others)})

    def head_norms(self, prefix: str) -> dict[str, NormSettings]:
        """Norms of each query and each key, for `attention` under the same prefix."""
        return {
            f"{part}_norm": self.norm(f"{prefix}.{part[0]}_norm", size=self.head_dim, over_a_head=True)
            for part in ("query", "key")
        }

    def mlp(self, prefix: str, **others: Any) -> MlpSettings:
        """Llama's MLP under `prefix`; `others` are fields of MlpSettings."""
        llama: dict[str, Any] = {
            "up": (f"{prefix}.gate_proj", f"{prefix}.up_proj"),
            "down": f"{prefix}.down_proj",
            "activation": others.get("activation") or self.activation(),
            "bias": self.flag("mlp_bias"),
        }
        if "intermediate_size" not in others:
            llama["intermediate_size"] = self.intermediate
        return MlpSettings(**{**llama, **others})

    def plain_mlp(self, up: str, down: str, *, bias: bool = True, transposed: bool = False) -> MlpSettings:
        """Without a gate; four times as wide as the stream unless the config says how wide."""
        return MlpSettings(
            up=(up,),
            down=down,
            intermediate_size=self.positive("intermediate_size", 4 * self.hidden),
            activation=self.activation(),
            gated=False,
            bias=bias,
            transposed=self.arranged("transposed", transposed),
        )

    def activation(self, name: str = "hidden_act") -> str:
        """The activation that this key names."""
        value = self.value(name, "silu")
        if value not in ACTIVATIONS:
            raise self.refusal(name, value, f"known are {', '.join(sorted(ACTIVATIONS))}")
        return ACTIVATIONS[value]

    def layer(self, prefix: str, **others: Any) -> LayerSettings:
        """Llama's layer under `prefix`; `others` are fields of LayerSettings."""
        llama: dict[str, Callable[[], Any]] = {
            "mixer": lambda: self.attention(f"{prefix}.self_attn"),
            "mlp": lambda: self.mlp(f"{prefix}.mlp"),
            "input_norm": lambda: self.norm(f"{prefix}.input_layernorm"),
            "mlp_norm": lambda: self.norm(f"{prefix}.post_attention_layernorm"),
        }
        made = {name: make() for name, make in llama.items() if name not in others}
        return LayerSettings(hidden_size=self.hidden, **made, **others)

    def describe(
        self,
        layers: Callable[[int], LayerSettings],
        shapes: Callable[[int], LayerShape] | None = None,
        *,
        tied: bool = False,
        **others: Any,
    ) -> ModelDescription:
        """The whole model: layers by number, and what is around them.

        tied    whether the head is the embedding's table, where the config does not say it
        others  fields of DecoderSettings
        """
        head, is_tied = others.pop("head", "lm_head"), self.flag("tie_word_embeddings", tied)
        ignored = (*others.pop("ignored", ()), *((f"{head}.",) if is_tied else ()))
        llama: dict[str, Any] = {"embedding_size": self.hidden}
        if "norm" not in others:
            llama["norm"] = self.norm("model.norm")
        settings = DecoderSettings(
            layers=tuple(layers(i) for i in range(self.num_layers)),
            head=None if is_tied else head,
            ignored=ignored,
            **{**llama, **others},
        )
        kept = tuple(shapes(i) if shapes else self.shape() for i in range(self.num_layers))
        named = self.value("dtype") or self.value("torch_dtype") or "float32"
        return ModelDescription(
            architecture=self.architecture,
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            context=self.context,
            dtype=str(named).removeprefix("torch."),
            layers=kept,
            settings=settings,
        )


def decoder(
    name: str,
    family: str,
    describe: Callable[[Reading], ModelDescription],
    *,
    defaults: Config | None = None,
    keys: Mapping[str, str] | None = None,
    gguf: GgufMapping | None = None,
    contract: tuple[int, int] = VERSIONS["model"],
) -> Architecture:
    """The architecture of a decoder family, which `describe` reads from its config.

    defaults, keys  as `Reading` takes them
    contract        version of the model contract that the family was written for
    """

    def describe_config(config: Config) -> ModelDescription:
        return describe(Reading(name, config, defaults, keys))

    return Architecture(
        name=name, family=family, describe=describe_config, build=_build, gguf=gguf, contract=contract
    )


def _build(description: ModelDescription, weights: Weights, parts: Parts) -> Model:
    from core.layers.decoder import Decoder

    return Decoder(description, weights, parts)
