"""Qwen 2 and Qwen 3 with experts: in some layers, and in Qwen 2 beside an MLP that every token goes through."""

from collections.abc import Callable

from core.contracts.model import ModelDescription
from core.layers.moe import MoeSettings
from core.layers.reading import Reading, decoder
from core.layers.settings import AttentionSettings, LayerSettings
from models.gguf import EXPERTS, gguf_mapping
from models.llama import QWEN, upper_windows
from models.mixture import mixture, softmax_routing


def _qwen2_moe(read: Reading) -> ModelDescription:
    routing = softmax_routing(read, normalized=read.flag("norm_topk_prob"))
    width = read.positive("shared_expert_intermediate_size")

    def mixer(prefix: str) -> AttentionSettings:
        return read.attention(prefix, qkv_bias=read.flag("qkv_bias", True), output_bias=False)

    def experts(prefix: str) -> MoeSettings:
        shared = read.mlp(f"{prefix}.shared_expert", intermediate_size=width)
        return mixture(read, prefix, routing, shared=shared, shared_gate=f"{prefix}.shared_expert_gate")

    return _described(read, upper_windows(read), mixer, experts)


def _qwen3_moe(read: Reading) -> ModelDescription:
    """Norms of each query and each key; one window for all layers, when the config asks for one."""
    routing = softmax_routing(read, normalized=read.flag("norm_topk_prob"))
    windows = read.windows if read.flag("use_sliding_window") else (None,) * read.num_layers
    key = "num_experts" if read.value("num_experts") is not None else "num_local_experts"

    def mixer(prefix: str) -> AttentionSettings:
        return read.attention(prefix, **read.head_norms(prefix))

    return _described(read, windows, mixer, lambda prefix: mixture(read, prefix, routing, experts=key))


def _described(
    read: Reading,
    windows: tuple[int | None, ...],
    mixer: Callable[[str], AttentionSettings],
    experts: Callable[[str], MoeSettings],
) -> ModelDescription:
    """Every `decoder_sparse_step`th layer has experts, but those among `mlp_only_layers`."""
    dense, every = read.value("mlp_only_layers", []), read.positive("decoder_sparse_step", 1)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        sparse = i not in dense and (i + 1) % every == 0
        others = {"mlp": experts(f"{prefix}.mlp")} if sparse else {}
        return read.layer(prefix, mixer=mixer(f"{prefix}.self_attn"), **others)

    return read.describe(layer, lambda i: read.shape(sliding_window=windows[i]))


QWEN2_MOE = decoder(
    "Qwen2MoeForCausalLM",
    "qwen_moe",
    _qwen2_moe,
    defaults=QWEN,
    gguf=gguf_mapping(
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        names={
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
        },
        also=EXPERTS | {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
        told={"qkv_bias": ("attn_q.bias",)},
    ),
)
QWEN3_MOE = decoder(
    "Qwen3MoeForCausalLM",
    "qwen_moe",
    _qwen3_moe,
    defaults={**QWEN, "num_key_value_heads": 4},
    gguf=gguf_mapping(
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        also=EXPERTS,
        more=lambda metadata: {"norm_topk_prob": True},  # of every model that there is; GGUF does not say it
    ),
)

ALL = [QWEN2_MOE, QWEN3_MOE]
