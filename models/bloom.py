"""BLOOM: no positions but a bias of the scores that grows with distance."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings
from models.gguf import gguf_mapping


def _bloom(read: Reading) -> ModelDescription:
    read.expect("apply_residual_connection_post_layernorm", expected=False, why="adds to what its norms read")

    def layer(i: int) -> LayerSettings:
        prefix = f"transformer.h.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                prefix,
                qkv=(f"{prefix}.self_attention.query_key_value",),
                output=f"{prefix}.self_attention.dense",
                qkv_bias=True,
                output_bias=True,
                grouped=True,
                rotary=None,
            ),
            mlp=read.plain_mlp(f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h"),
            input_norm=read.layer_norm(f"{prefix}.input_layernorm"),
            mlp_norm=read.layer_norm(f"{prefix}.post_attention_layernorm"),
        )

    return read.describe(
        layer,
        lambda i: read.shape(alibi=True),
        prefix="transformer.",
        embedding="transformer.word_embeddings",
        embedding_norm=read.layer_norm("transformer.word_embeddings_layernorm"),
        norm=read.layer_norm("transformer.ln_f"),
    )


_KEYS = {
    "hidden_size": "n_embed",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "seq_length",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
}
BLOOM = decoder(
    "BloomForCausalLM",
    "gpt",
    _bloom,
    defaults={
        "layer_norm_epsilon": 1e-5,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
        "seq_length": 2048,
    },
    keys=_KEYS,
    gguf=gguf_mapping(
        "bloom",
        "BloomForCausalLM",
        names={
            "token_embd": "transformer.word_embeddings",
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        layer="transformer.h.{i}",
        layer_norms=True,
        keys=_KEYS,
        arrangement={"grouped": False},
    ),
)

ALL = [BLOOM]
