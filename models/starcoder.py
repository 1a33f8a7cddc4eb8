"""StarCoder 2: biases, layer norms and no gate, and one window for all layers."""

from core.contracts.model import ModelDescription
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings
from models.gguf import gguf_mapping


def _starcoder2(read: Reading) -> ModelDescription:
    bias = read.flag("use_bias", True)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mixer=read.attention(f"{prefix}.self_attn", qkv_bias=bias, output_bias=bias),
            mlp=read.plain_mlp(f"{prefix}.mlp.c_fc", f"{prefix}.mlp.c_proj", bias=bias),
            input_norm=read.layer_norm(f"{prefix}.input_layernorm"),
            mlp_norm=read.layer_norm(f"{prefix}.post_attention_layernorm"),
        )

    return read.describe(
        layer, lambda i: read.shape(sliding_window=read.windows[i]), norm=read.layer_norm("model.norm")
    )


STARCODER2 = decoder(
    "Starcoder2ForCausalLM",
    "gpt",
    _starcoder2,
    defaults={
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
    keys={"layer_norm_eps": "norm_epsilon"},
    gguf=gguf_mapping(
        "starcoder2",
        "Starcoder2ForCausalLM",
        names={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        layer_norms=True,
        keys={"layer_norm_eps": "norm_epsilon"},
        told={"use_bias": ("attn_q.bias",)},
    ),
)

ALL = [STARCODER2]
