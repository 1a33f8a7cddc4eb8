"""Phi 1, 1.5 and 2: both halves of a layer read one norm. Phi 3 is a kin of Llama."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, NormSettings
from models.gguf import gguf_mapping


def _phi(read: Reading) -> ModelDescription:
    rotary = read.rotary(share=0.5)

    def head_norm(name: str) -> NormSettings | None:
        if not read.flag("qk_layernorm"):
            return None
        return read.norm(
            name, eps="layer_norm_eps", kind="layer", size=read.head_dim, over_a_head=True, bias=True
        )

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                f"{prefix}.self_attn",
                output=f"{prefix}.self_attn.dense",
                qkv_bias=True,
                output_bias=True,
                rotary=rotary,
                query_norm=head_norm(f"{prefix}.self_attn.q_layernorm"),
                key_norm=head_norm(f"{prefix}.self_attn.k_layernorm"),
            ),
            mlp=read.plain_mlp(f"{prefix}.mlp.fc1", f"{prefix}.mlp.fc2"),
            input_norm=read.layer_norm(f"{prefix}.input_layernorm"),
            mlp_norm=None,
            parallel=True,
        )

    return read.describe(layer, norm=read.layer_norm("model.final_layernorm"), head_bias=True)


PHI = decoder(
    "PhiForCausalLM",
    "gpt",
    _phi,
    defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
    gguf=gguf_mapping(
        "phi2",
        "PhiForCausalLM",
        names={
            "output_norm": "model.final_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
        layer_norms=True,
    ),
)

ALL = [PHI]
