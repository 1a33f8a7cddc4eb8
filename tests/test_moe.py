"""Families with experts, and the differences that their configs may declare, against transformers on tiny weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import check, prompts, write_tiny
from parity import Reference

from core import LLM, SamplingParams
from core.errors import BadCheckpoint, ConfigError

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "short_mscale": 1.2,
    "long_mscale": 1.2,
    "original_max_position_embeddings": 512,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
GROUPS = {
    **dict.fromkeys(("n_routed_experts", "num_local_experts", "num_experts"), 8),  # one number, by its names
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
}
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
DBRX = {
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 512,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
    "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}
QUICK: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", {}),
    "qwen 2 moe": ("Qwen2MoeForCausalLM", {}),
    "granite moe with a shared mlp": (
        "GraniteMoeSharedForCausalLM",
        {"shared_intermediate_size": 40, "residual_multiplier": 0.3, "logits_scaling": 2.0},
    ),
    "phi moe": ("PhimoeForCausalLM", {}),
    "deepseek v2": ("DeepseekV2ForCausalLM", LATENT | GROUPS | {"topk_method": "group_limited_greedy"}),
    "deepseek v3": ("DeepseekV3ForCausalLM", LATENT | GROUPS),
}
ALL: dict[str, tuple[str, dict[str, Any]]] = {
    **QUICK,
    "mixtral without a window": ("MixtralForCausalLM", {"sliding_window": None}),
    "qwen 2 moe with dense layers": (
        "Qwen2MoeForCausalLM",
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": True},
    ),
    "qwen 3 moe": ("Qwen3MoeForCausalLM", {"norm_topk_prob": True}),
    "qwen 3 moe with a window": ("Qwen3MoeForCausalLM", {"use_sliding_window": True}),
    "granite moe": ("GraniteMoeForCausalLM", {"attention_multiplier": 0.2, "embedding_multiplier": 5.0}),
    "olmoe": ("OlmoeForCausalLM", {}),
    "phi moe with longrope and biases": (
        "PhimoeForCausalLM",
        {"rope_parameters": LONGROPE, "attention_bias": True, "lm_head_bias": True},
    ),
    "dbrx": ("DbrxForCausalLM", DBRX),
    "glm 4 moe": ("Glm4MoeForCausalLM", GROUPS | {"use_qk_norm": True}),
    "glm 4 moe with biases": ("Glm4MoeForCausalLM", {"attention_bias": True}),
    "deepseek v2 lite": (
        "DeepseekV2ForCausalLM",
        LATENT
        | {
            "q_lora_rank": None,
            "topk_method": "greedy",
            "rope_parameters": YARN,
            "routed_scaling_factor": 3.0,
        },
    ),
    "deepseek v3 with yarn": (
        "DeepseekV3ForCausalLM",
        LATENT | {"rope_parameters": YARN, "q_lora_rank": None},
    ),
    "deepseek v3 in halves": (
        "DeepseekV3ForCausalLM",
        LATENT | {"rope_interleave": False, "first_k_dense_replace": 0},
    ),
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("family"), *ALL[request.param])


@pytest.mark.parametrize("folder", QUICK, indirect=True)
def test_a_family_computes_what_transformers_computes(folder: Path) -> None:
    check(folder, "cpu", "native")


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("folder", ALL, indirect=True)
def test_every_family_computes_what_transformers_computes(folder: Path, platform: str) -> None:
    check(folder, platform, "native")


@pytest.mark.parametrize("folder", ["granite moe", "dbrx"], indirect=True)
def test_experts_that_lie_in_one_weight_are_rounded_one_by_one(folder: Path) -> None:
    asked, params = prompts(), SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    with LLM(
        str(folder), platform="cpu", dtype="float32", quantization="int8", skip_tokenizer_init=True
    ) as llm:
        answers = [output.outputs[0].token_ids for output in llm.generate(asked, params, use_tqdm=False)]
        held = next(choice.detail for choice in llm.engine.ledger.choices if choice.what == "weights")
    experts = 2 * 4 * 2  # up and down, of each expert, in each layer
    assert int(re.findall(r"(\d+) as int8", held)[0]) >= experts
    reference, agreeing = Reference(folder, attention="eager"), 0
    for prompt, answer in zip(asked, answers, strict=True):
        likeliest = reference.logits([*prompt, *answer])[len(prompt) - 1 : -1].argmax(-1)
        agreeing += int((likeliest == torch.tensor(answer)).sum())
    assert agreeing >= 0.85 * 8 * len(asked)


def changed(folder: Path, **config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("MixtralForCausalLM", {"num_experts_per_tok": 9}, "9 of 4 experts, in 1 of 1 groups"),
        (
            "MixtralForCausalLM",
            {"hidden_act": "gelu"},
            "hidden_act is 'gelu'; MixtralForCausalLM here computes silu",
        ),
        (
            "PhimoeForCausalLM",
            {"num_experts_per_tok": 3},
            "num_experts_per_tok is 3; PhimoeForCausalLM here chooses 2",
        ),
        ("Glm4MoeForCausalLM", {"n_group": 3, "topk_group": 3}, "2 of 4 experts, in 3 of 3 groups"),
        ("DeepseekV2ForCausalLM", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("DeepseekV3ForCausalLM", {"attention_bias": True}, "attention_bias is True"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused_by_its_key(
    tmp_path: Path, architecture: str, config: dict[str, Any], message: str
) -> None:
    folder = changed(write_tiny(tmp_path, architecture, {}), **config)
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLM(str(folder), platform="cpu", model_impl="native", skip_tokenizer_init=True)


def test_a_weight_of_all_experts_that_is_misshaped_is_told_once(tmp_path: Path) -> None:
    folder = changed(write_tiny(tmp_path, "GraniteMoeForCausalLM", {}), num_local_experts=5)
    with pytest.raises(BadCheckpoint) as raised:
        LLM(str(folder), platform="cpu", model_impl="native", skip_tokenizer_init=True)
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    assert str(raised.value).count(name) == 1
    assert f"{name} is [4, 192, 64], expected [5, 192, 64]" in str(raised.value)
