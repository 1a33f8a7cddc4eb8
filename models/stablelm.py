"""StableLM: a quarter of each head is rotated; its second release has norms of each head's own."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, NormSettings
from models.gguf import Metadata, Values, gguf_mapping


def _stablelm(read: Reading) -> ModelDescription:
    parallel = read.flag("use_parallel_residual")
    rotary = read.rotary(share=0.25)

    def head_norm(name: str, heads: int) -> NormSettings | None:
        if not read.flag("qk_layernorm"):
            return None
        return read.norm(
            f"{name}.norms",
            eps="layer_norm_eps",
            kind="layer",
            size=read.head_dim,
            over_a_head=True,
            heads=heads,
            listed=True,
        )

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                f"{prefix}.self_attn",
                qkv_bias=read.flag("use_qkv_bias"),
                output_bias=False,
                rotary=rotary,
                query_norm=head_norm(f"{prefix}.self_attn.q_layernorm", read.heads),
                key_norm=head_norm(f"{prefix}.self_attn.k_layernorm", read.kv_heads),
            ),
            input_norm=read.layer_norm(f"{prefix}.input_layernorm"),
            mlp_norm=None if parallel else read.layer_norm(f"{prefix}.post_attention_layernorm"),
            parallel=parallel,
        )

    return read.describe(layer, norm=read.layer_norm("model.norm"))


def _halves(metadata: Metadata) -> Values:
    """Where both halves of a layer read one norm, there is no other. What the metadata says is not always so."""
    metadata.value("use_parallel_residual")
    return {"use_parallel_residual": not metadata.holds("ffn_norm.weight")}


STABLELM = decoder(
    "StableLmForCausalLM",
    "gpt",
    _stablelm,
    defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 4096},
    gguf=gguf_mapping(
        "stablelm",
        "StableLmForCausalLM",
        names={
            "attn_q_norm": "self_attn.q_layernorm.norms",
            "attn_k_norm": "self_attn.k_layernorm.norms",
        },
        layer_norms=True,
        told={"use_qkv_bias": ("attn_q.bias",), "qk_layernorm": ("attn_q_norm.weight",)},
        arrangement={"listed": False},
        more=_halves,
    ),
)

ALL = [STABLELM]
