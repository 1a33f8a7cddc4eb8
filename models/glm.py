"""GLM-4: half of each head is rotated, neighbours together; from the 0414 releases on with a norm behind each half."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, NormSettings
from models.gguf import gguf_mapping


def _described(read: Reading, *, sandwich: bool) -> ModelDescription:
    def output_norm(name: str) -> NormSettings | None:
        return read.norm(name) if sandwich else None

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(
                f"{prefix}.self_attn", output_bias=False, rotary=read.rotary(share=0.5, interleaved=True)
            ),
            mlp=read.mlp(f"{prefix}.mlp", up=(f"{prefix}.mlp.gate_up_proj",), bias=False),
            mixer_output_norm=output_norm(f"{prefix}.post_self_attn_layernorm"),
            mlp_output_norm=output_norm(f"{prefix}.post_mlp_layernorm"),
        )

    return read.describe(layer)


def _glm(read: Reading) -> ModelDescription:
    return _described(read, sandwich=False)


def _glm4(read: Reading) -> ModelDescription:
    return _described(read, sandwich=True)


_GLM = {
    "head_dim": 128,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "rms_norm_eps": 1.5625e-07,
    "max_position_embeddings": 131072,
}
_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_OUTPUT_NORMS = {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
GLM = decoder(
    "GlmForCausalLM",
    "glm",
    _glm,
    defaults=_GLM,
    gguf=gguf_mapping("chatglm", "GlmForCausalLM", names=_NAMES),
)
GLM4 = decoder(
    "Glm4ForCausalLM",
    "glm",
    _glm4,
    defaults=_GLM,
    gguf=gguf_mapping("glm4", "Glm4ForCausalLM", names=_NAMES | _OUTPUT_NORMS),
)

ALL = [GLM, GLM4]
