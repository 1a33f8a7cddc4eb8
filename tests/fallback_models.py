"""Architectures that nobody declares here, run through transformers: what each needs beyond tiny sizes.

Those that it refuses are listed as well, each with the reason.
"""

from collections.abc import Mapping
from typing import Any

_LATENT = {"num_key_value_heads": 4, "head_dim": None}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}

FALLBACK: Mapping[str, Mapping[str, Any]] = {
    "AXK1ForCausalLM": _LATENT,
    "AfmoeForCausalLM": {},
    "ApertusForCausalLM": {},
    "ArceeForCausalLM": {},
    "AriaTextForCausalLM": {},
    "BeamForCausalLM": {},
    "BertGenerationDecoder": {},
    "BertLMHeadModel": {},
    "BioGptForCausalLM": {},
    "BitNetForCausalLM": {},
    "CTRLLMHeadModel": {},
    "CamembertForCausalLM": {},
    "Cohere2MoeForCausalLM": {},
    "CohereCompassForCausalLM": {
        "rope_parameters": {"full_attention": _ROTARY, "sliding_attention": _ROTARY},
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "CwmForCausalLM": {},
    "Data2VecTextForCausalLM": {},
    "DiffLlamaForCausalLM": {},
    "Dots1ForCausalLM": {},
    "ElectraForCausalLM": {},
    "Emu3ForCausalLM": {},
    "Ernie4_5ForCausalLM": {},
    "Ernie4_5_MoeForCausalLM": {},
    "ErnieForCausalLM": {},
    "Exaone4ForCausalLM": {},
    "ExaoneMoeForCausalLM": {},
    "FlexOlmoForCausalLM": {},
    "GPTBigCodeForCausalLM": {},
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 320,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
    },
    "Gemma4ForCausalLM": {},
    "Gemma4UnifiedForCausalLM": {},
    "Glm4MoeLiteForCausalLM": _LATENT,
    "HYV3ForCausalLM": {},
    "HeliumForCausalLM": {},
    "HrmTextForCausalLM": {},
    "HunYuanDenseV1ForCausalLM": {},
    "HunYuanMoEV1ForCausalLM": {},
    "HyperCLOVAXForCausalLM": {},
    "Jais2ForCausalLM": {},
    "Kolibri1ForCausalLM": {},
    "LagunaForCausalLM": {},
    "LongcatFlashForCausalLM": {
        "num_key_value_heads": 4,
        "head_dim": 8,
        "num_layers": 2,
        "num_hidden_layers": 2,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
    },
    "MellumForCausalLM": {},
    "MiniCPM3ForCausalLM": {"num_key_value_heads": 4},
    "MiniMaxM2ForCausalLM": {},
    "MiniMaxM3VLForCausalLM": {},
    "Ministral3ForCausalLM": {},
    "MinistralForCausalLM": {},
    "ModernBertDecoderForCausalLM": {},
    "MoshiForCausalLM": {},
    "NanoChatForCausalLM": {},
    "NemotronForCausalLM": {},
    "PersimmonForCausalLM": {},
    "RoCBertForCausalLM": {},
    "RobertaForCausalLM": {},
    "RobertaPreLayerNormForCausalLM": {},
    "SeedOssForCausalLM": {},
    "SolarOpenForCausalLM": {},
    "VaultGemmaForCausalLM": {},
    "XLMRobertaForCausalLM": {},
    "XLMRobertaXLForCausalLM": {},
    "YoutuForCausalLM": _LATENT,
}

FAST = (
    "AfmoeForCausalLM",  # experts, a window in one layer
    "DiffLlamaForCausalLM",  # two calls of attention in a layer
    "MiniCPM3ForCausalLM",  # values narrower than keys
    "RobertaForCausalLM",  # positions counted from behind a row for padding
    "VaultGemmaForCausalLM",  # soft caps
    "YoutuForCausalLM",  # keys in a part that all heads share
)
"""What every test run tries. Among them they ask for whatever the fallback knows."""

REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "BloomForCausalLM": ({}, "cannot be told the positions of tokens"),
    "XGLMForCausalLM": ({}, "cannot be followed"),
    "DogeForCausalLM": ({}, "cannot be followed"),
    "FlintForCausalLM": ({}, "asks attention for s_aux"),
    "GlmMoeDsaForCausalLM": ({}, "layers of indexed_attention"),
    "GptOssForCausalLM": ({}, "asks attention for s_aux"),
    "JetMoeForCausalLM": ({}, "cannot be followed"),
    "Lfm2ForCausalLM": ({"layer_types": ["conv", "full_attention"]}, "layers of conv"),
    "Llama4ForCausalLM": ({}, "layers of chunked_attention"),
    "MegatronBertForCausalLM": ({}, "cannot be followed"),
    "MiMoV2FlashForCausalLM": ({}, "asks attention for s_aux"),
    "MiniMaxForCausalLM": ({}, "layers of linear_attention"),
    "Qwen3NextForCausalLM": ({}, "layers of linear_attention"),
    "RwkvForCausalLM": ({}, "recurrent state"),
}
"""What is needed beyond tiny sizes, and what the reason says."""
