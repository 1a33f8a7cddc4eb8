"""How GGUF spells a decoder: its metadata keys and tensor names.

Source: the GGUF specification, and the names that llama.cpp's converter writes.
"""

from collections.abc import Mapping
from typing import Any

from core.contracts.model import GgufMapping
from core.errors import BadCheckpoint

_WEIGHTS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}
_LAYER_WEIGHTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_REQUIRED = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "vocab_size": "vocab_size",
}


def gguf_mapping(name: str, architecture: str, *, interleaved: bool = False) -> GgufMapping:
    """The mapping of one GGUF architecture. `interleaved`: the converter reordered query and key rows."""

    def config(metadata: Mapping[str, Any]) -> dict[str, Any]:
        missing = [f"{name}.{key}" for key in _REQUIRED.values() if f"{name}.{key}" not in metadata]
        if missing:
            raise BadCheckpoint(f"the GGUF metadata lacks {', '.join(missing)}")
        values = {ours: metadata[f"{name}.{key}"] for ours, key in _REQUIRED.items()}
        values |= {
            ours: metadata[f"{name}.{key}"] for ours, key in _OPTIONAL.items() if f"{name}.{key}" in metadata
        }
        scaling = metadata.get(f"{name}.rope.scaling.type", "none")
        if scaling == "linear":
            values["rope_scaling"] = {
                "rope_type": "linear",
                "factor": metadata[f"{name}.rope.scaling.factor"],
            }
        elif scaling != "none":
            values["rope_scaling"] = {"rope_type": scaling}
        return values | {"architectures": [architecture]}

    layers = {
        f"model.layers.{{i}}.{ours}.{kind}": f"blk.{{i}}.{theirs}.{kind}"
        for ours, theirs in _LAYER_WEIGHTS.items()
        for kind in ("weight", "bias")
    }
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    permuted = {
        f"model.layers.{{i}}.self_attn.{projection}.{kind}": key
        for projection, key in heads.items()
        for kind in ("weight", "bias")
    }
    return GgufMapping(
        name=name, config=config, weights=_WEIGHTS | layers, permuted=permuted if interleaved else {}
    )
