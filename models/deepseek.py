"""DeepSeek V2 and V3, whose attention keeps one short vector a token, and GLM-4.5 with the experts of V3."""

from collections.abc import Callable

from core.contracts.attention import AttentionShape
from core.contracts.kernels import Routing
from core.contracts.model import ModelDescription
from core.layers.latent import LatentSettings
from core.layers.moe import MoeSettings
from core.layers.reading import Reading, decoder
from core.layers.settings import AttentionSettings, LayerSettings, MixerSettings, NormSettings
from models.gguf import Metadata, Values, gguf_mapping
from models.mixture import mixture, softmax_routing


def _deepseek_v2(read: Reading) -> ModelDescription:
    read.expect("norm_topk_prob", expected=False, why="does not divide weights by their sum")
    routing = softmax_routing(read, scale=read.number("routed_scaling_factor", 1.0))
    if read.value("topk_method", "greedy") != "greedy":
        read.expect("topk_method", expected="group_limited_greedy", why="chooses so, or greedily")
        groups, top_groups = read.positive("n_group"), read.positive("topk_group")
        routing = softmax_routing(read, scale=routing.scale, groups=groups, top_groups=top_groups)
    return _latent(read, routing, interleaved=True)


def _deepseek_v3(read: Reading) -> ModelDescription:
    return _latent(read, _biased_routing(read), interleaved=read.flag("rope_interleave", True))


def _glm4_moe(read: Reading) -> ModelDescription:
    norms = read.flag("use_qk_norm")

    def mixer(prefix: str) -> AttentionSettings:
        others = read.head_norms(prefix) if norms else {}
        return read.attention(prefix, output_bias=False, rotary=read.rotary(share=0.5), **others)

    return _described(read, _biased_routing(read), mixer, read.shape())


def _biased_routing(read: Reading) -> Routing:
    read.expect("scoring_func", expected="sigmoid", why="ranks experts by the sigmoid of their logits")
    read.expect("topk_method", expected="noaux_tc", why="chooses so")
    return Routing(
        top_k=read.positive("num_experts_per_tok"),
        scoring="sigmoid",
        groups=read.positive("n_group", 1),
        top_groups=read.positive("topk_group", 1),
        group_best=2,
        normalized=read.flag("norm_topk_prob", True),
        scale=read.number("routed_scaling_factor", 1.0),
    )


def _latent(read: Reading, routing: Routing, *, interleaved: bool) -> ModelDescription:
    read.expect("attention_bias", expected=False, why="has no biases in its attention")
    expand = ("k", "v") if read.arranged("apart", usual=False) else ("kv",)
    rank, down = read.positive("kv_lora_rank"), read.value("q_lora_rank")
    key, value = read.positive("qk_nope_head_dim"), read.positive("v_head_dim")
    rotary = read.rotary(dim=read.positive("qk_rope_head_dim"), interleaved=interleaved)

    def norm(name: str, size: int) -> NormSettings:
        return NormSettings(name=name, size=size, eps=1e-6)

    def mixer(prefix: str) -> LatentSettings:
        direct = down is None
        return LatentSettings(
            query=(f"{prefix}.q_proj",) if direct else (f"{prefix}.q_a_proj", f"{prefix}.q_b_proj"),
            query_norm=None if direct else norm(f"{prefix}.q_a_layernorm", read.positive("q_lora_rank")),
            latent=f"{prefix}.kv_a_proj_with_mqa",
            latent_norm=norm(f"{prefix}.kv_a_layernorm", rank),
            expand=tuple(f"{prefix}.{part}_b_proj" for part in expand),
            output=f"{prefix}.o_proj",
            key_dim=key,
            value_dim=value,
            rotary=rotary,
        )

    scale = (key + rotary.rotary_dim) ** -0.5 * _sharpened(read)
    shape = AttentionShape(
        num_heads=read.heads, num_kv_heads=1, head_dim=rank + rotary.rotary_dim, scale=scale, latent=rank
    )
    return _described(read, routing, mixer, shape)


def _sharpened(read: Reading) -> float:
    """By how much the scores of a stretched context are scaled besides."""
    from core.layers.rotary import yarn_scale

    scaling = read.rotary().scaling
    all_dim = scaling.get("mscale_all_dim", 0)
    return 1.0 if scaling["rope_type"] == "default" else yarn_scale(scaling["factor"], all_dim) ** 2


def _described(
    read: Reading,
    routing: Routing,
    mixer: Callable[[str], AttentionSettings | MixerSettings],
    shape: AttentionShape,
) -> ModelDescription:
    """Experts from layer `first_k_dense_replace` on. Layers that only draft tokens come last, and are left out."""
    read.expect("moe_layer_freq", expected=1, why="has experts in every layer from one on")
    first = read.value("first_k_dense_replace", 0)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        others = {} if i < first else {"mlp": _experts(read, f"{prefix}.mlp", routing)}
        return read.layer(prefix, mixer=mixer(f"{prefix}.self_attn"), **others)

    drafting = range(read.num_layers, read.num_layers + read.value("num_nextn_predict_layers", 0))
    return read.describe(layer, lambda i: shape, ignored=tuple(f"model.layers.{i}." for i in drafting))


def _experts(read: Reading, prefix: str, routing: Routing) -> MoeSettings:
    shared = None
    if read.value("n_shared_experts") is not None:
        width = read.positive("n_shared_experts") * read.positive("moe_intermediate_size")
        shared = read.mlp(f"{prefix}.shared_experts", intermediate_size=width)
    biased = routing.scoring == "sigmoid"
    return mixture(
        read,
        prefix,
        routing,
        experts="n_routed_experts",
        bias=f"{prefix}.gate.e_score_correction_bias" if biased else None,
        shared=shared,
    )


_EXPERT_NAMES = {
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_EXPERT_KEYS = {
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "n_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}


def _latent_told(metadata: Metadata) -> Values:
    """GGUF calls V3 a V2. Newer files have keys and values of the vector's size, and say those of a head besides."""
    sigmoid, groups = metadata.value("expert_gating_func") == 2, metadata.value("expert_group_count") or 1
    rotated = metadata.whole("rope.dimension_count")
    key, value = metadata.whole("attention.key_length"), metadata.whole("attention.value_length")
    greedy = "group_limited_greedy" if groups > 1 else "greedy"
    return {
        "architectures": ["DeepseekV3ForCausalLM" if sigmoid else "DeepseekV2ForCausalLM"],
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "topk_method": "noaux_tc" if sigmoid else greedy,
        "n_group": groups,
        "topk_group": metadata.value("expert_group_used_count") or 1,
        "routed_scaling_factor": metadata.value("expert_weights_scale") or 1.0,
        "q_lora_rank": metadata.value("attention.q_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": metadata.whole("attention.key_length_mla", key) - rotated,
        "v_head_dim": metadata.whole("attention.value_length_mla", value),
        "arrangement": {"apart": metadata.holds("attn_k_b.weight")},
    }


_DEEPSEEK_GGUF = gguf_mapping(
    "deepseek2",
    "DeepseekV2ForCausalLM",
    names={
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
        "attn_k_b": "self_attn.k_b_proj",
        "attn_v_b": "self_attn.v_b_proj",
        **_EXPERT_NAMES,
    },
    also=_EXPERT_KEYS | {"q_lora_rank": "attention.q_lora_rank", "kv_lora_rank": "attention.kv_lora_rank"},
    more=_latent_told,
)
DEEPSEEK_V2 = decoder(
    "DeepseekV2ForCausalLM",
    "deepseek",
    _deepseek_v2,
    defaults={"n_shared_experts": 2, "q_lora_rank": 1536},
    gguf=_DEEPSEEK_GGUF,
)
DEEPSEEK_V3 = decoder(
    "DeepseekV3ForCausalLM",
    "deepseek",
    _deepseek_v3,
    defaults={
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "q_lora_rank": 1536,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 4096,
    },
    gguf=_DEEPSEEK_GGUF,
)


def _drafting(metadata: Metadata) -> Values:
    """GGUF counts the layers that only draft tokens."""
    metadata.expect("expert_gating_func", 2, "a sigmoid")
    drafting = metadata.value("nextn_predict_layers", 0)
    return {
        "num_hidden_layers": metadata.whole("block_count") - drafting,
        "num_nextn_predict_layers": drafting,
    }


_DRAFTING = ("eh_proj", "embed_tokens", "enorm", "hnorm", "shared_head_head", "shared_head_norm")
GLM4_MOE = decoder(
    "Glm4MoeForCausalLM",
    "deepseek",
    _glm4_moe,
    defaults={
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 131072,
    },
    gguf=gguf_mapping(
        "glm4moe",
        "Glm4MoeForCausalLM",
        names={
            "post_attention_norm": "post_attention_layernorm",
            **_EXPERT_NAMES,
            **{f"nextn.{name}": name for name in _DRAFTING},
        },
        also=_EXPERT_KEYS,
        told={"use_qk_norm": ("attn_q_norm.weight",)},
        more=_drafting,
    ),
)

ALL = [DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE]
