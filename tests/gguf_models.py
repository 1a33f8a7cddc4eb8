"""The families that GGUF names: what is done to the weights of each, what its file says, and a tiny model of it."""

from typing import Any

from gguf_converter import (
    Conversion,
    fuse,
    long_factors,
    of_bloom,
    of_dbrx,
    of_deepseek,
    of_glm4_moe,
    of_granite_moe,
    of_jamba,
    of_mamba,
    of_mixtral,
    permute,
    rotated,
    stack_experts,
    stack_norms,
    transpose,
    ungroup,
    whole_norms,
)
from gguf_metadata import (
    of_cohere,
    of_cohere2,
    of_dbrx_metadata,
    of_deepseek_at_first,
    of_deepseek_metadata,
    of_experts,
    of_falcon,
    of_gemma2,
    of_glm4_moe_metadata,
    of_gptj,
    of_granite,
    of_jamba_metadata,
    of_mamba_metadata,
    of_neox,
    of_olmo,
    of_olmo3,
    of_phi3,
    of_stablelm,
    of_window,
    scaled,
)

NO_SIZES = ("attention.key_length", "attention.value_length")
NO_BASE = ("rope.freq_base",)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
JAMBA = {
    "num_hidden_layers": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 0,
    "mamba_d_state": 8,
    "mamba_expand": 3,
    "use_mamba_kernels": False,
}
DBRX = {
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 512,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
    "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}


def longrope(original: int) -> Any:
    """The changes to a config whose long factors are for sequences beyond this length."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + i / 16 for i in range(8)],
        "long_factor": [1.0 + i / 2 for i in range(8)],
        "original_max_position_embeddings": original,
        "attention_factor": 1.1,
    }
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

FAMILIES: dict[str, Conversion] = {
    "llama": Conversion(architecture="LlamaForCausalLM", gguf="llama", weights=permute, metadata=rotated),
    "llama with biases": Conversion(
        architecture="LlamaForCausalLM",
        gguf="llama",
        weights=permute,
        changes={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "linear": Conversion(
        architecture="LlamaForCausalLM",
        gguf="llama",
        weights=permute,
        metadata=scaled,
        changes={"rope_parameters": LINEAR},
    ),
    "mistral": Conversion(
        architecture="MistralForCausalLM",
        gguf="llama",
        weights=permute,
        metadata=of_window,
    ),
    "qwen2": Conversion(architecture="Qwen2ForCausalLM", gguf="qwen2"),
    "qwen2 yarn": Conversion(
        architecture="Qwen2ForCausalLM", gguf="qwen2", metadata=scaled, changes={"rope_parameters": YARN}
    ),
    "qwen3": Conversion(architecture="Qwen3ForCausalLM", gguf="qwen3"),
    "granite": Conversion(
        architecture="GraniteForCausalLM",
        gguf="granite",
        weights=permute,
        metadata=of_granite,
        leaves_out=NO_SIZES,
        changes={
            "attention_multiplier": 0.25,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": Conversion(
        architecture="SmolLM3ForCausalLM", gguf="smollm3", weights=permute, changes={"num_hidden_layers": 4}
    ),
    "phi3": Conversion(architecture="Phi3ForCausalLM", gguf="phi3", metadata=of_phi3, leaves_out=NO_SIZES),
    **{
        f"phi3 {length}": Conversion(
            architecture="Phi3ForCausalLM",
            gguf="phi3",
            weights=long_factors,
            metadata=of_phi3,
            leaves_out=NO_SIZES,
            changes=longrope(original),
        )
        for length, original in (("long", 2), ("short", 512))
    },
    "mixtral": Conversion(
        architecture="MixtralForCausalLM",
        gguf="llama",
        weights=of_mixtral,
        metadata=of_experts,
        changes={"sliding_window": None},
    ),
    "qwen3moe": Conversion(
        architecture="Qwen3MoeForCausalLM",
        gguf="qwen3moe",
        weights=stack_experts,
        metadata=of_experts,
        changes={"norm_topk_prob": True},
    ),
    "olmoe": Conversion(
        architecture="OlmoeForCausalLM",
        gguf="olmoe",
        weights=stack_experts,
        metadata=of_experts,
        leaves_out=NO_SIZES,
    ),
    "qwen2moe": Conversion(
        architecture="Qwen2MoeForCausalLM", gguf="qwen2moe", weights=stack_experts, metadata=of_experts
    ),
    "phimoe": Conversion(
        architecture="PhimoeForCausalLM",
        gguf="phimoe",
        weights=stack_experts,
        metadata=lambda config: of_experts(config) | of_window(config),
        changes={"attention_bias": True, "lm_head_bias": True},
    ),
    "granitemoe": Conversion(
        architecture="GraniteMoeSharedForCausalLM",
        gguf="granitemoe",
        weights=of_granite_moe,
        metadata=lambda config: of_granite(config) | of_experts(config),
        changes={"shared_intermediate_size": 40, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        leaves_out=NO_SIZES,
    ),
    "glm4moe": Conversion(
        architecture="Glm4MoeForCausalLM",
        gguf="glm4moe",
        weights=of_glm4_moe,
        metadata=of_glm4_moe_metadata,
        changes={"use_qk_norm": True, "routed_scaling_factor": 1.5},
    ),
    "deepseek v3": Conversion(
        architecture="DeepseekV3ForCausalLM",
        gguf="deepseek2",
        weights=of_deepseek,
        metadata=of_deepseek_metadata,
        changes=LATENT | {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
    ),
    "deepseek v2 at first": Conversion(
        architecture="DeepseekV2ForCausalLM",
        gguf="deepseek2",
        weights=stack_experts,
        metadata=of_deepseek_at_first,
        changes=LATENT | {"topk_method": "greedy", "q_lora_rank": None},
    ),
    "dbrx": Conversion(
        architecture="DbrxForCausalLM",
        gguf="dbrx",
        weights=of_dbrx,
        metadata=of_dbrx_metadata,
        changes=DBRX,
        leaves_out=NO_SIZES,
    ),
    "mamba": Conversion(
        architecture="MambaForCausalLM",
        gguf="mamba",
        weights=of_mamba,
        metadata=of_mamba_metadata,
        changes={"tie_word_embeddings": True},
        leaves_out=("attention.layer_norm_epsilon",),
    ),
    "jamba": Conversion(
        architecture="JambaForCausalLM",
        gguf="jamba",
        weights=of_jamba,
        metadata=of_jamba_metadata,
        changes=JAMBA,
        leaves_out=NO_SIZES,
    ),
    "internlm2": Conversion(
        architecture="LlamaForCausalLM", gguf="internlm2", weights=permute, leaves_out=NO_SIZES
    ),
    "gemma": Conversion(
        architecture="GemmaForCausalLM",
        gguf="gemma",
        weights=whole_norms,
        changes={"tie_word_embeddings": True},
        leaves_out=NO_BASE,
    ),
    "gemma2": Conversion(
        architecture="Gemma2ForCausalLM",
        gguf="gemma2",
        weights=whole_norms,
        metadata=of_gemma2,
        changes={"tie_word_embeddings": True, "query_pre_attn_scalar": 16},
        leaves_out=NO_BASE,
    ),
    "gemma3": Conversion(
        architecture="Gemma3ForCausalLM",
        gguf="gemma3",
        weights=whole_norms,
        metadata=lambda config: (
            of_window(config) | {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
        ),
        changes={
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 6,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    "command-r": Conversion(
        architecture="CohereForCausalLM",
        gguf="command-r",
        metadata=of_cohere,
        changes={"use_qk_norm": True, "tie_word_embeddings": True, "logit_scale": 0.25},
        leaves_out=NO_SIZES,
    ),
    "cohere2": Conversion(
        architecture="Cohere2ForCausalLM",
        gguf="cohere2",
        metadata=of_cohere2,
        changes={"num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    "chatglm": Conversion(
        architecture="GlmForCausalLM", gguf="chatglm", metadata=rotated, leaves_out=NO_SIZES
    ),
    "chatglm fused": Conversion(
        architecture="GlmForCausalLM", gguf="chatglm", weights=fuse, metadata=rotated, leaves_out=NO_SIZES
    ),
    "glm4": Conversion(architecture="Glm4ForCausalLM", gguf="glm4", metadata=rotated),
    "olmo": Conversion(
        architecture="OlmoForCausalLM",
        gguf="olmo",
        weights=permute,
        metadata=of_olmo,
        changes={"clip_qkv": 0.5},
        leaves_out=NO_SIZES,
    ),
    "olmo2": Conversion(architecture="Olmo2ForCausalLM", gguf="olmo2", leaves_out=NO_SIZES),
    "olmo3": Conversion(
        architecture="Olmo3ForCausalLM",
        gguf="olmo2",
        metadata=of_olmo3,
        changes={"num_hidden_layers": 3, "layer_types": ["full_attention", *["sliding_attention"] * 2]},
        leaves_out=NO_SIZES,
    ),
    "gpt2": Conversion(
        architecture="GPT2LMHeadModel", gguf="gpt2", weights=transpose, changes={"tie_word_embeddings": True}
    ),
    "gptj": Conversion(
        architecture="GPTJForCausalLM", gguf="gptj", metadata=of_gptj, changes={"rotary_dim": 8}
    ),
    "gptneox": Conversion(
        architecture="GPTNeoXForCausalLM",
        gguf="gptneox",
        weights=ungroup,
        metadata=of_neox,
        leaves_out=("attention.head_count_kv", *NO_BASE),
    ),
    "gptneox in sequence": Conversion(
        architecture="GPTNeoXForCausalLM",
        gguf="gptneox",
        weights=ungroup,
        metadata=of_neox,
        changes={"use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "bloom": Conversion(
        architecture="BloomForCausalLM", gguf="bloom", weights=of_bloom, changes={"tie_word_embeddings": True}
    ),
    "falcon": Conversion(
        architecture="FalconForCausalLM",
        gguf="falcon",
        weights=ungroup,
        metadata=of_falcon,
        changes={"tie_word_embeddings": True, "new_decoder_architecture": False, "multi_query": True},
        leaves_out=NO_BASE + NO_SIZES,
    ),
    "falcon of groups": Conversion(
        architecture="FalconForCausalLM",
        gguf="falcon",
        weights=ungroup,
        metadata=of_falcon,
        changes={"new_decoder_architecture": True, "num_kv_heads": 2},
        leaves_out=NO_BASE + NO_SIZES,
    ),
    "starcoder2": Conversion(
        architecture="Starcoder2ForCausalLM",
        gguf="starcoder2",
        changes={"sliding_window": None, "norm_epsilon": 0.05, "use_bias": False},
    ),
    "stablelm": Conversion(
        architecture="StableLmForCausalLM",
        gguf="stablelm",
        weights=stack_norms,
        metadata=of_stablelm,
        changes={"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
        leaves_out=NO_BASE,
    ),
    "stablelm in sequence": Conversion(
        architecture="StableLmForCausalLM", gguf="stablelm", metadata=of_stablelm, leaves_out=NO_BASE
    ),
    "phi2": Conversion(architecture="PhiForCausalLM", gguf="phi2", metadata=rotated, leaves_out=NO_BASE),
    "phi2 fused": Conversion(
        architecture="PhiForCausalLM", gguf="phi2", weights=fuse, metadata=rotated, leaves_out=NO_BASE
    ),
}
