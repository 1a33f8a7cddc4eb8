"""How GGUF spells a decoder: its metadata keys, its tensor names, and what it arranges otherwise.

A family's page says what differs from Llama. Source: the GGUF specification, the tables of names in the `gguf` package,
and what llama.cpp's converter does to the weights of each family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.contracts.model import GgufMapping
from core.errors import BadCheckpoint

Values = Mapping[str, Any]

_AROUND = ("token_embd", "token_embd_norm", "position_embd", "output_norm", "output", "rope_freqs")
"""Tensors that are no layer's."""

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": "rope_freqs",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj",
    "ffn_down_exps": "mlp.experts.{e}.down_proj",
}
"""What Llama, and its kin with experts, call the tensors."""

EXPERTS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""The keys of mixtures of experts, for `also`."""

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
}
_ATTENTION = {"intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count"}
_RMS, _LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_BIASES = {
    "attention_bias": ("attn_q.bias", "attn_qkv.bias"),
    "mlp_bias": ("ffn_up.bias",),
}
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_SCALING = {
    "factor": ("factor",),
    "original_max_position_embeddings": ("original_context_length",),
    "attention_factor": ("yarn_attn_factor", "attn_factor"),
    "beta_fast": ("yarn_beta_fast",),
    "beta_slow": ("yarn_beta_slow",),
}
_NEEDED = {
    "none": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
}
"""The ways in which GGUF says that rotation is scaled, and what each must tell."""

_WHOLE = (".weight", ".bias", ".ssm_a", ".ssm_d")
"""Endings of names that are whole."""

_WITHOUT_EFFECT = ("tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.yarn_ext_factor")


class Metadata:
    """What a file says of its model, and which of that was read. Raises BadCheckpoint for what is unacceptable."""

    def __init__(self, name: str, values: Values) -> None:
        self._name, self._values = name, values
        self._read: set[str] = set(_WITHOUT_EFFECT)
        self.tensors: Mapping[str, tuple[int, ...]] = values.get("tensors", {})

    def value(self, key: str, default: Any = None) -> Any:
        """What the key says, under the architecture's name."""
        self._read.add(key)
        return self._values.get(f"{self._name}.{key}", default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.value(key, default)
        return self._whole(key, value, value)

    def expect(self, key: str, expected: Any, why: str) -> None:
        """Refuse a file that says anything else of this key."""
        value = self.value(key, expected)
        if value != expected:
            raise self.refusal(key, value, f"{expected}, {why}, is expected")

    def of_layers(self, key: str, default: int) -> int:
        """A whole number above 0, the same for all layers that have it; a list may say it of each, and 0 of others."""
        value = self.value(key, default)
        said: Any = sorted(set(value) - {0}) if isinstance(value, list) else [value]
        return self._whole(key, value, said[0] if len(said) == 1 else None)

    def _whole(self, key: str, value: Any, number: Any) -> int:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise self.refusal(key, value, "a whole number above 0 is expected")
        return number

    def numbers(self, tensor: str, count: int) -> list[float] | None:
        """What a tensor holds that is a part of the config; so many numbers."""
        shape = self.tensors.get(tensor)
        if shape is not None and shape != (count,):
            raise BadCheckpoint(f"{tensor} is {list(shape)}, expected {[count]}")
        return self._values.get(tensor)

    def holds(self, *names: str) -> bool:
        """Whether the first layer has one of these tensors."""
        return any(f"blk.0.{name}" in self.tensors for name in names)

    def refusal(self, key: str, value: Any, expected: str) -> BadCheckpoint:
        return BadCheckpoint(f"the GGUF metadata says {self._name}.{key} is {value!r:.80}; {expected}")

    def check_present(self, keys: list[str]) -> None:
        missing = [f"{self._name}.{key}" for key in keys if self.value(key) is None]
        if missing:
            raise BadCheckpoint(f"the GGUF metadata lacks {', '.join(missing)}")

    def check_all_read(self) -> None:
        """Refuse a model that differs in something that nobody here asked about."""
        for key, value in self._values.items():
            own = key.removeprefix(f"{self._name}.")
            if own != key and own not in self._read and value:
                raise self.refusal(own, value, "nobody here knows what that means")


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How GGUF spells one architecture, where it is not as it spells Llama.

    names        what the family calls a tensor; with an ending, all of it
    layer        what its names of a layer's weights begin with
    permuted     the converter reorders rows of queries and keys, so that two that are rotated together are neighbours
    layer_norms  its norms are layer norms
    attends      whether it has attention, and an MLP
    keys         the family's spelling of Llama's config keys, as `decoder` has it
    also         config keys, and the metadata keys that have their values
    told         config flags, and tensors of a layer that are there when they are true
    arrangement  what `Reading.arranged` shall say of its weights
    more         whatever else the metadata tells of the config
    """

    name: str
    architecture: str
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    layer: str = "model.layers.{i}"
    permuted: bool = False
    layer_norms: bool = False
    attends: bool = True
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    also: Mapping[str, str] = field(default_factory=dict[str, str])
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    arrangement: Values = field(default_factory=dict[str, Any])
    more: Callable[[Metadata], Values] = lambda metadata: {}

    def mapping(self) -> GgufMapping:
        """As the core takes it."""
        ours = _LLAMA | dict(self.names)
        weights: dict[str, str] = {}
        for theirs, own in ours.items():
            around = theirs in _AROUND
            module, tensor = (own, theirs) if around else (f"{self.layer}.{own}", f"blk.{{i}}.{theirs}")
            endings = ("",) if tensor.endswith(_WHOLE) else (".weight", ".bias")
            weights |= {f"{module}{ending}": f"{tensor}{ending}" for ending in endings}
        heads = {ours["attn_q"]: "num_attention_heads", ours["attn_k"]: "num_key_value_heads"}
        permuted = {
            f"{self.layer}.{name}.{kind}": key for name, key in heads.items() for kind in ("weight", "bias")
        }
        return GgufMapping(
            name=self.name,
            config=self.config,
            weights=weights,
            permuted=permuted if self.permuted else {},
            values=(_LONG, _SHORT),
        )

    def config(self, values: Values) -> dict[str, Any]:
        """GGUF metadata -> the config that a safetensors folder would have."""
        metadata = Metadata(self.name, values)
        sizes = self._sizes(metadata)
        told = {key: metadata.holds(*names) for key, names in (_BIASES | dict(self.told)).items()}
        arrangement = dict(self.arrangement)
        arrangement.setdefault("fused", metadata.holds("attn_qkv.weight"))
        given = {
            **sizes,
            **(_heads(metadata, sizes) if self.attends else {}),
            **told,
            **{ours: metadata.value(theirs) for ours, theirs in self.also.items()},
            "architectures": [self.architecture],
            "arrangement": arrangement,
        }
        given |= self.more(metadata)
        metadata.check_all_read()
        return {self.keys.get(key, key): value for key, value in given.items() if value is not None}

    def _sizes(self, metadata: Metadata) -> dict[str, Any]:
        """Of the stream, and whatever every model has."""
        epsilon, other = (_LAYER_NORM, _RMS) if self.layer_norms else (_RMS, _LAYER_NORM)
        keys = _SIZES | (_ATTENTION if self.attends else {})
        metadata.check_present([*keys.values(), epsilon])
        metadata.value(other)
        metadata.expect("attention.causal", True, "as of all decoders")
        layers = metadata.whole("block_count")
        if layers > len(metadata.tensors) > 0:
            raise metadata.refusal("block_count", layers, f"the file has {len(metadata.tensors)} tensors")
        table = metadata.tensors.get("token_embd.weight", (None,))
        return {
            **{ours: metadata.whole(theirs) for ours, theirs in keys.items()},
            "vocab_size": metadata.value("vocab_size", table[0]),
            "layer_norm_eps" if self.layer_norms else "rms_norm_eps": metadata.value(epsilon),
        }


def _heads(metadata: Metadata, sizes: Values) -> dict[str, Any]:
    """Of queries, keys and values; values of a latent vector are narrower than keys."""
    heads = sizes["num_attention_heads"]
    head_dim = metadata.whole("attention.key_length", max(1, sizes["hidden_size"] // heads))
    if metadata.value("attention.kv_lora_rank") is None:
        metadata.expect("attention.value_length", head_dim, "the length of keys")
    return {
        "head_dim": head_dim,
        "num_key_value_heads": metadata.of_layers("attention.head_count_kv", heads),
        **_rotary(metadata, head_dim),
        **_windows(metadata, sizes["num_hidden_layers"]),
    }


def _rotary(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    """How much of a head is rotated, how fast, and how that is scaled; factors of LongRoPE are tensors."""
    dim = metadata.whole("rope.dimension_count", head_dim)
    if dim > head_dim or dim % 2:
        raise metadata.refusal(
            "rope.dimension_count", dim, f"an even number, {head_dim} at most, is expected"
        )
    factors = {"long_factor": _LONG, "short_factor": _SHORT}
    said: dict[str, Any] = {ours: metadata.numbers(tensor, dim // 2) for ours, tensor in factors.items()}
    for ours, names in _SCALING.items():
        values = [metadata.value(f"rope.scaling.{name}") for name in names]
        said[ours] = next((value for value in values if value is not None), None)
    kind = metadata.value("rope.scaling.type", "none" if said["long_factor"] is None else "longrope")
    if kind not in _NEEDED:
        raise metadata.refusal("rope.scaling.type", kind, f"known are {', '.join(_NEEDED)}")
    missing = [key for key in _NEEDED[kind] if said[key] is None]
    if missing:
        raise metadata.refusal("rope.scaling.type", kind, f"the file lacks its {' and '.join(missing)}")
    sharpened = metadata.value("rope.scaling.yarn_log_multiplier")  # a tenth of it
    said["mscale"] = said["mscale_all_dim"] = None if sharpened is None else 10 * sharpened
    told = {key: value for key, value in said.items() if value is not None}
    return {
        "rope_theta": metadata.value("rope.freq_base"),
        "rotary_dim": metadata.value("rope.dimension_count"),
        "rope_scaling": None if kind == "none" else {"rope_type": kind, **told},
    }


def _windows(metadata: Metadata, num_layers: int) -> dict[str, Any]:
    """Zero is no window; a pattern is a flag for each layer, or how many layers there are to one without."""
    pattern = metadata.value("attention.sliding_window_pattern")
    kinds = None
    if isinstance(pattern, list):
        kinds = ["sliding_attention" if flag else "full_attention" for flag in pattern[:num_layers]]
    return {
        "sliding_window": metadata.value("attention.sliding_window") or None,
        "sliding_window_pattern": None if kinds else pattern,
        "layer_types": kinds,
    }


def gguf_mapping(name: str, architecture: str, **others: Any) -> GgufMapping:
    """The mapping of one GGUF architecture; `others` are fields of `Spelling`."""
    return Spelling(name=name, architecture=architecture, **others).mapping()
