"""GPT-2: learned positions, and weights that are stored as [in, out]."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, PositionSettings
from models.gguf import gguf_mapping


def _gpt2(read: Reading) -> ModelDescription:
    """Weights are stored as [in, out]."""
    read.expect("add_cross_attention", expected=False, why="attends to its own tokens alone")
    by_depth = read.flag("scale_attn_by_inverse_layer_idx")
    scale = read.head_dim**-0.5 if read.flag("scale_attn_weights", True) else 1.0

    def layer(i: int) -> LayerSettings:
        prefix = f"transformer.h.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                prefix,
                qkv=(f"{prefix}.attn.c_attn",),
                output=f"{prefix}.attn.c_proj",
                qkv_bias=True,
                output_bias=True,
                transposed=True,
                rotary=None,
            ),
            mlp=read.plain_mlp(f"{prefix}.mlp.c_fc", f"{prefix}.mlp.c_proj", transposed=True),
            input_norm=read.layer_norm(f"{prefix}.ln_1"),
            mlp_norm=read.layer_norm(f"{prefix}.ln_2"),
        )

    return read.describe(
        layer,
        lambda i: read.shape(scale=scale / (i + 1) if by_depth else scale),
        prefix="transformer.",
        embedding="transformer.wte",
        positions=PositionSettings(name="transformer.wpe", rows=read.context),
        norm=read.layer_norm("transformer.ln_f"),
    )


KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
}
GPT2 = decoder(
    "GPT2LMHeadModel",
    "gpt",
    _gpt2,
    defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
    keys=KEYS,
    gguf=gguf_mapping(
        "gpt2",
        "GPT2LMHeadModel",
        names={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        layer="transformer.h.{i}",
        layer_norms=True,
        keys=KEYS,
        arrangement={"transposed": False},
    ),
)

ALL = [GPT2]
