"""What llama.cpp's converter writes about each family beside what it writes about all, from transformers' config."""

from typing import Any

from gguf_converter import Metadata, kv_heads_of, rotated


def of_granite(config: Any) -> Metadata:
    return {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def of_falcon(config: Any) -> Metadata:
    return {"attention.head_count_kv": kv_heads_of(config), "context_length": 2048}


def of_olmo(config: Any) -> Metadata:
    return {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": config.clip_qkv}


def of_olmo3(config: Any) -> Metadata:
    return {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
    }


def of_window(config: Any) -> Metadata:
    return {"attention.sliding_window": config.sliding_window}


def of_gemma2(config: Any) -> Metadata:
    return {
        "attention.sliding_window": config.sliding_window,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


def of_cohere(config: Any) -> Metadata:
    return {"logit_scale": config.logit_scale, "rope.scaling.type": "none"}


def of_cohere2(config: Any) -> Metadata:
    return of_cohere(config) | {"attention.sliding_window": config.sliding_window}


def of_phi3(config: Any) -> Metadata:
    rope = config.rope_parameters
    return rotated(config) | {
        "rope.scaling.original_context_length": config.original_max_position_embeddings,
        "rope.scaling.attn_factor": rope.get("attention_factor"),
        "attention.sliding_window": config.sliding_window or 0,
    }


def of_neox(config: Any) -> Metadata:
    return {"use_parallel_residual": config.use_parallel_residual, "rope.dimension_count": 4}


def of_stablelm(config: Any) -> Metadata:
    return rotated(config) | {"use_parallel_residual": config.use_parallel_residual}


def of_experts(config: Any) -> Metadata:
    count = [getattr(config, f"{name}_experts", None) for name in ("num_local", "num", "n_routed")]
    shared = [
        getattr(config, f"shared_{name}", None) for name in ("intermediate_size", "expert_intermediate_size")
    ]
    return {
        "expert_count": next(number for number in count if number),
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_shared_feed_forward_length": next((size for size in shared if size), None),
    }


def of_glm4_moe_metadata(config: Any) -> Metadata:
    return (
        rotated(config)
        | of_experts(config)
        | {
            "expert_shared_count": config.n_shared_experts,
            "leading_dense_block_count": config.first_k_dense_replace,
            "expert_gating_func": 2,
            "expert_weights_scale": config.routed_scaling_factor,
            "expert_weights_norm": config.norm_topk_prob,
            "expert_group_count": config.n_group,
            "expert_group_used_count": config.topk_group,
        }
    )


def of_mamba_metadata(config: Any) -> Metadata:
    return {
        "context_length": 2**20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.inner_size": config.intermediate_size,
        "ssm.state_size": config.state_size,
        "ssm.time_step_rank": config.time_step_rank,
        "ssm.dt_b_c_rms": False,
    }


def of_jamba_metadata(config: Any) -> Metadata:
    period, offset = config.attn_layer_period, config.attn_layer_offset
    layers = range(config.num_hidden_layers)
    return of_experts(config) | {
        "attention.head_count_kv": [config.num_key_value_heads * (i % period == offset) for i in layers],
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.inner_size": config.mamba_expand * config.hidden_size,
        "ssm.state_size": config.mamba_d_state,
        "ssm.time_step_rank": config.mamba_dt_rank,
    }


def of_deepseek_metadata(config: Any) -> Metadata:
    """Of files whose keys and values are of the vector's size."""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    return of_deepseek_at_first(config) | {
        "attention.head_count_kv": 1,
        "attention.key_length": width,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
    }


def of_deepseek_at_first(config: Any) -> Metadata:
    """Of files that have them as a head has them."""
    rope = config.rope_parameters
    return of_glm4_moe_metadata(config) | {
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.scaling.type": {"yarn": "yarn"}.get(rope["rope_type"]),
        "rope.scaling.factor": rope.get("factor"),
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
        "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"]
        if "mscale_all_dim" in rope
        else None,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length": config.v_head_dim,
        "expert_gating_func": 2 if config.architectures[0].startswith("DeepseekV3") else 1,
    }


def of_dbrx_metadata(config: Any) -> Metadata:
    attention, ffn = config.attn_config, config.ffn_config
    return {
        "context_length": config.max_seq_len,
        "feed_forward_length": ffn.ffn_hidden_size,
        "attention.head_count_kv": attention.kv_n_heads,
        "rope.freq_base": attention.rope_theta,
        "attention.clamp_kqv": attention.clip_qkv,
        "expert_count": ffn.moe_num_experts,
        "expert_used_count": ffn.moe_top_k,
        "attention.layer_norm_epsilon": 1e-5,
    }


def of_gptj(config: Any) -> Metadata:
    return {"rope.dimension_count": config.rotary_dim}


def scaled(config: Any) -> Metadata:
    rope = config.rope_parameters
    return {
        "rope.scaling.type": rope["rope_type"],
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
    }
