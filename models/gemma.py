"""Gemma 1, 2 and 3 (its text model): norms stored as what they exceed one by, a scaled embedding, and from 2 on a norm
on either side of each half and windows in most layers.
"""

from collections.abc import Callable

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, NormSettings, RotarySettings
from models.gguf import Metadata, Values, gguf_mapping


def _norm(read: Reading, name: str, size: int | None = None, *, over_a_head: bool = False) -> NormSettings:
    return read.norm(name, size=size, plus_one=True, over_a_head=over_a_head)


def _gemma(read: Reading) -> ModelDescription:
    # Configs of the first release say "gelu" and mean its approximation, as `hidden_activation` says in later ones.
    said = read.activation("hidden_act" if read.value("hidden_activation") is None else "hidden_activation")
    activation = "gelu_tanh" if said == "gelu" else said

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mlp=read.mlp(f"{prefix}.mlp", activation=activation),
            input_norm=_norm(read, f"{prefix}.input_layernorm"),
            mlp_norm=_norm(read, f"{prefix}.post_attention_layernorm"),
        )

    return _described(read, layer, (None,) * read.num_layers)


def _sandwich(read: Reading, i: int, **attention: RotarySettings | NormSettings) -> LayerSettings:
    """A layer of Gemma 2 and 3: a norm before and after each half."""
    prefix = f"model.layers.{i}"
    return read.layer(
        prefix,
        mixer=read.attention(f"{prefix}.self_attn", **attention),
        mlp=read.mlp(f"{prefix}.mlp", activation=read.activation("hidden_activation")),
        input_norm=_norm(read, f"{prefix}.input_layernorm"),
        mixer_output_norm=_norm(read, f"{prefix}.post_attention_layernorm"),
        mlp_norm=_norm(read, f"{prefix}.pre_feedforward_layernorm"),
        mlp_output_norm=_norm(read, f"{prefix}.post_feedforward_layernorm"),
    )


def _gemma2(read: Reading) -> ModelDescription:
    return _described(read, lambda i: _sandwich(read, i), read.windows_but_every(2))


def _gemma3(read: Reading) -> ModelDescription:
    """Layers with a window rotate by frequencies of their own."""
    windows = read.windows_but_every(read.positive("sliding_window_pattern", 6))
    local, whole = _local_rotary(read), _whole_rotary(read)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}.self_attn"
        return _sandwich(
            read,
            i,
            rotary=whole if windows[i] is None else local,
            query_norm=_norm(read, f"{prefix}.q_norm", read.head_dim, over_a_head=True),
            key_norm=_norm(read, f"{prefix}.k_norm", read.head_dim, over_a_head=True),
        )

    return _described(read, layer, windows)


def _local_rotary(read: Reading) -> RotarySettings:
    given = read.value("rope_parameters") or {}
    block = given.get("sliding_attention") or {"rope_theta": read.number("rope_local_base_freq", 10000.0)}
    return read.rotary(block=block)


def _whole_rotary(read: Reading) -> RotarySettings:
    given = read.value("rope_parameters") or {}
    return read.rotary(block=given.get("full_attention") or read.value("rope_scaling") or {})


def _described(
    read: Reading, layer: Callable[[int], LayerSettings], windows: tuple[int | None, ...]
) -> ModelDescription:
    read.expect("use_bidirectional_attention", expected=False, why="lets tokens see none that follow")
    scalar = read.number("query_pre_attn_scalar", read.head_dim)
    cap = read.optional("attn_logit_softcapping")
    return read.describe(
        layer,
        lambda i: read.shape(scale=scalar**-0.5, sliding_window=windows[i], soft_cap=cap),
        norm=_norm(read, "model.norm"),
        embedding_scale=read.hidden**0.5,
        logit_cap=read.optional("final_logit_softcapping"),
    )


def _scaled_by(layers_of_the_largest: int) -> Callable[[Metadata], Values]:
    """GGUF does not say what scores are scaled by: a head's size, and in the largest model its share of the stream."""

    def told(metadata: Metadata) -> Values:
        heads = metadata.whole("attention.head_count")
        share = metadata.whole("embedding_length") // heads
        largest = metadata.whole("block_count") == layers_of_the_largest
        return {"query_pre_attn_scalar": share if largest else metadata.whole("attention.key_length", share)}

    return told


_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_WHOLE_NORMS = {"plus_one": False}
_GEMMA = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
}
GEMMA = decoder(
    "GemmaForCausalLM",
    "gemma",
    _gemma,
    defaults={
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    gguf=gguf_mapping("gemma", "GemmaForCausalLM", arrangement=_WHOLE_NORMS),
)
GEMMA2 = decoder(
    "Gemma2ForCausalLM",
    "gemma",
    _gemma2,
    defaults=_GEMMA
    | {
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    gguf=gguf_mapping(
        "gemma2",
        "Gemma2ForCausalLM",
        names=_SANDWICH,
        also=_CAPS,
        arrangement=_WHOLE_NORMS,
        more=_scaled_by(46),
    ),
)
GEMMA3 = decoder(
    "Gemma3ForCausalLM",
    "gemma",
    _gemma3,
    defaults=_GEMMA
    | {
        "rope_theta": 1e6,
        "query_pre_attn_scalar": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
    },
    gguf=gguf_mapping(
        "gemma3",
        "Gemma3ForCausalLM",
        names=_SANDWICH,
        also=_CAPS | {"rope_local_base_freq": "rope.freq_base_swa"},
        arrangement=_WHOLE_NORMS,
        more=_scaled_by(62),
    ),
)

ALL = [GEMMA, GEMMA2, GEMMA3]
