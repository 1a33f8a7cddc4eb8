"""GPT-J and GPT-NeoX (Pythia): both halves of a layer read what enters it, and part of each head is rotated."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings
from models.gguf import gguf_mapping
from models.gpt2 import KEYS


def _gptj(read: Reading) -> ModelDescription:
    rotary = read.rotary(interleaved=True)

    def layer(i: int) -> LayerSettings:
        prefix = f"transformer.h.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                f"{prefix}.attn",
                output=f"{prefix}.attn.out_proj",
                qkv_bias=False,
                output_bias=False,
                rotary=rotary,
            ),
            mlp=read.plain_mlp(f"{prefix}.mlp.fc_in", f"{prefix}.mlp.fc_out"),
            input_norm=read.layer_norm(f"{prefix}.ln_1"),
            mlp_norm=None,
            parallel=True,
        )

    return read.describe(
        layer,
        prefix="transformer.",
        embedding="transformer.wte",
        norm=read.layer_norm("transformer.ln_f"),
        head_bias=True,
    )


def _gpt_neox(read: Reading) -> ModelDescription:
    bias = read.flag("attention_bias", True)
    parallel = read.flag("use_parallel_residual", True)
    rotary = read.rotary(share=read.number("rotary_pct", 0.25))

    def layer(i: int) -> LayerSettings:
        prefix = f"gpt_neox.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                prefix,
                qkv=(f"{prefix}.attention.query_key_value",),
                output=f"{prefix}.attention.dense",
                qkv_bias=bias,
                output_bias=bias,
                grouped=True,
                rotary=rotary,
            ),
            mlp=read.plain_mlp(f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h"),
            input_norm=read.layer_norm(f"{prefix}.input_layernorm"),
            mlp_norm=read.layer_norm(f"{prefix}.post_attention_layernorm"),
            parallel=parallel,
        )

    return read.describe(
        layer,
        lambda i: read.shape(num_kv_heads=read.heads),
        embedding="gpt_neox.embed_in",
        norm=read.layer_norm("gpt_neox.final_layer_norm"),
        head="embed_out",
    )


GPTJ = decoder(
    "GPTJForCausalLM",
    "gpt",
    _gptj,
    defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "rotary_dim": 64},
    keys=KEYS,
    gguf=gguf_mapping(
        "gptj",
        "GPTJForCausalLM",
        names={
            "token_embd": "transformer.wte",
            "output_norm": "transformer.ln_f",
            "attn_norm": "ln_1",
            "attn_q": "attn.q_proj",
            "attn_k": "attn.k_proj",
            "attn_v": "attn.v_proj",
            "attn_output": "attn.out_proj",
            "ffn_up": "mlp.fc_in",
            "ffn_down": "mlp.fc_out",
        },
        layer="transformer.h.{i}",
        layer_norms=True,
        keys=KEYS,
    ),
)
GPT_NEOX = decoder(
    "GPTNeoXForCausalLM",
    "gpt",
    _gpt_neox,
    defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu", "rope_theta": 10000.0},
    keys={"rope_theta": "rotary_emb_base"},
    gguf=gguf_mapping(
        "gptneox",
        "GPTNeoXForCausalLM",
        names={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        layer="gpt_neox.layers.{i}",
        layer_norms=True,
        keys={"rope_theta": "rotary_emb_base"},
        also={"use_parallel_residual": "use_parallel_residual"},
        arrangement={"grouped": False},
    ),
)

ALL = [GPTJ, GPT_NEOX]
