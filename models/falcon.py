"""Falcon: the first release shares one key among all heads, the second one among each group of them."""

from core.contracts.model import ModelDescription
from core.errors import ConfigError
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings
from models.gguf import Metadata, Values, gguf_mapping


def _falcon(read: Reading) -> ModelDescription:
    """The first release shares one key among all heads, the second one among each group of them."""
    read.expect(
        "alibi", expected=False, why="rotates: its kind of ALiBi, scaled like the scores, is not served"
    )
    new, parallel = read.flag("new_decoder_architecture"), read.flag("parallel_attn", True)
    two_norms = new and read.value("num_ln_in_parallel_attn", 2) == 2
    first, second = "input_layernorm", "post_attention_layernorm"
    if two_norms:
        first, second = "ln_attn", read.arranged("ln_mlp", "ln_mlp")
    kv_heads = _falcon_kv_heads(read)

    def layer(i: int) -> LayerSettings:
        prefix, bias = f"transformer.h.{i}", read.flag("bias")
        both = two_norms or not (parallel or new)
        return read.layer(
            prefix,
            mixer=read.attention(
                prefix,
                qkv=(f"{prefix}.self_attention.query_key_value",),
                output=f"{prefix}.self_attention.dense",
                qkv_bias=bias,
                output_bias=bias,
                grouped=True,
            ),
            mlp=read.plain_mlp(f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h", bias=bias),
            input_norm=read.layer_norm(f"{prefix}.{first}"),
            mlp_norm=read.layer_norm(f"{prefix}.{second}") if both else None,
            parallel=parallel or new,
        )

    return read.describe(
        layer,
        lambda i: read.shape(num_kv_heads=kv_heads),
        prefix="transformer.",
        embedding="transformer.word_embeddings",
        norm=read.layer_norm("transformer.ln_f"),
    )


def _falcon_kv_heads(read: Reading) -> int:
    if read.flag("new_decoder_architecture"):
        count = read.positive("num_kv_heads", read.heads)
    else:
        count = 1 if read.flag("multi_query", True) else read.heads
    if read.heads % count:
        raise ConfigError(f"num_attention_heads {read.heads} is not a multiple of num_kv_heads {count}")
    return count


def _release(metadata: Metadata) -> Values:
    """The first release is the second one with one group of heads and one norm."""
    return {
        "new_decoder_architecture": True,
        "num_kv_heads": metadata.whole("attention.head_count_kv", 1),
        "num_ln_in_parallel_attn": 2 if metadata.holds("attn_norm_2.weight") else 1,
    }


_KEYS = {
    "hidden_size": "n_embed",
    "intermediate_size": "ffn_hidden_size",
    "hidden_act": "activation",
    "layer_norm_eps": "layer_norm_epsilon",
}
FALCON = decoder(
    "FalconForCausalLM",
    "gpt",
    _falcon,
    defaults={"layer_norm_epsilon": 1e-5, "activation": "gelu", "tie_word_embeddings": True},
    keys=_KEYS,
    gguf=gguf_mapping(
        "falcon",
        "FalconForCausalLM",
        names={
            "token_embd": "transformer.word_embeddings",
            "output_norm": "transformer.ln_f",
            "attn_norm_2": "ln_attn",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        layer="transformer.h.{i}",
        layer_norms=True,
        keys=_KEYS,
        arrangement={"grouped": False, "ln_mlp": "input_layernorm"},
        more=_release,
    ),
)

ALL = [FALCON]
