"""OPT: learned positions behind an offset; its 350m model has norms behind the additions, and a narrow embedding."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, NormSettings, PositionSettings


def _opt(read: Reading) -> ModelDescription:
    """The 350m model has its norms behind the additions, and a narrow embedding."""
    bias, first = read.flag("enable_bias", True), read.flag("do_layer_norm_before", True)
    affine = read.flag("layer_norm_elementwise_affine", True)
    width = read.positive("word_embed_proj_dim", read.hidden)
    removed = read.flag("_remove_final_layer_norm")

    def norm(name: str) -> NormSettings:
        return NormSettings(name=name, size=read.hidden, eps=1e-5, kind="layer", weight=affine, bias=affine)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.decoder.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                f"{prefix}.self_attn",
                output=f"{prefix}.self_attn.out_proj",
                qkv_bias=bias,
                output_bias=bias,
                rotary=None,
            ),
            mlp=read.plain_mlp(f"{prefix}.fc1", f"{prefix}.fc2", bias=bias),
            input_norm=norm(f"{prefix}.self_attn_layer_norm"),
            mlp_norm=norm(f"{prefix}.final_layer_norm"),
            after=not first,
        )

    narrow = width != read.hidden
    return read.describe(
        layer,
        lambda i: read.shape(num_kv_heads=read.heads),
        prefix="model.",
        embedding="model.decoder.embed_tokens",
        embedding_size=width,
        project_in="model.decoder.project_in" if narrow else None,
        project_out="model.decoder.project_out" if narrow else None,
        positions=PositionSettings(name="model.decoder.embed_positions", rows=read.context + 2, offset=2),
        norm=norm("model.decoder.final_layer_norm") if first and not removed else None,
    )


OPT = decoder(
    "OPTForCausalLM",
    "gpt",
    _opt,
    defaults={"activation_function": "relu", "tie_word_embeddings": True},
    keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
)

ALL = [OPT]
