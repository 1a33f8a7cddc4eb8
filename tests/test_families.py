"""Every native decoder family, and every difference that its config may declare, against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import check, prompts, write_tiny
from safetensors.torch import load_file, save_file

from core import LLM, SamplingParams
from core.discovery import load_plugins
from core.errors import ConfigError

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 512,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
LAYER_TYPES = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.1": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "gemma 2": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 20}),
    "command-r with norms of heads": ("CohereForCausalLM", {"use_qk_norm": True, "eos_token_id": 2}),
    "olmo 2": ("Olmo2ForCausalLM", {}),
    "glm 4": ("Glm4ForCausalLM", {}),
    "gpt-2": ("GPT2LMHeadModel", {}),
    "bloom": ("BloomForCausalLM", {}),
    "llama": ("LlamaForCausalLM", {}),
    "llama with biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama of one key head": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama with yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "llama with dynamic ntk": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama with relu": ("LlamaForCausalLM", {"hidden_act": "relu"}),
    "mistral": ("MistralForCausalLM", {}),
    "mistral without a window": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen 2": ("Qwen2ForCausalLM", {}),
    "qwen 2 with a window in its upper layer": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen 3": ("Qwen3ForCausalLM", {}),
    "granite": (
        "GraniteForCausalLM",
        {
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 5.0,
            "logits_scaling": 2.0,
        },
    ),
    "smollm 3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4}),
    "phi 3": ("Phi3ForCausalLM", {}),
    "phi 3 with longrope": ("Phi3ForCausalLM", {"rope_parameters": LONGROPE, "max_position_embeddings": 512}),
    "phi 4 mini": ("Phi3ForCausalLM", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", {}),
    "gemma 3": ("Gemma3ForCausalLM", {"layer_types": LAYER_TYPES, "rope_parameters": GEMMA3_ROPE}),
    "command-r": ("CohereForCausalLM", {"eos_token_id": 2}),
    "command-r 7b": ("Cohere2ForCausalLM", {"layer_types": LAYER_TYPES, "eos_token_id": 2}),
    "glm": ("GlmForCausalLM", {}),
    "olmo": ("OlmoForCausalLM", {"clip_qkv": 0.5}),
    "olmo 3": ("Olmo3ForCausalLM", {"num_hidden_layers": 4}),
    "gpt-2 with scores scaled by depth": ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt-j": ("GPTJForCausalLM", {"rotary_dim": 8}),
    "gpt-neox": ("GPTNeoXForCausalLM", {}),
    "gpt-neox in sequence": ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    "opt": ("OPTForCausalLM", {}),
    "opt 350m": ("OPTForCausalLM", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "falcon 7b": ("FalconForCausalLM", {}),
    "falcon 11b": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon 40b": ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon in sequence": ("FalconForCausalLM", {"parallel_attn": False, "multi_query": False, "bias": True}),
    "starcoder 2": ("Starcoder2ForCausalLM", {}),
    "stablelm": ("StableLmForCausalLM", {}),
    "stablelm 2": (
        "StableLmForCausalLM",
        {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    "phi": ("PhiForCausalLM", {}),
    "phi with norms of heads": ("PhiForCausalLM", {"qk_layernorm": True}),
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("family"), *FAMILIES[request.param])


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_a_family_computes_what_transformers_computes(folder: Path, platform: str) -> None:
    check(folder, platform, "native")


def rewritten(folder: Path, into: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """The model of a folder, with another config and other names."""
    written = json.loads((folder / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(written | config))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, into / "model.safetensors")
    return into


def answers(folder: Path) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    with LLM(str(folder), platform="cpu", dtype="float32", skip_tokenizer_init=True) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(prompts(), params, use_tqdm=False)]


def test_internlm_2_is_a_llama_under_other_names(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    llama = write_tiny(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM", {})
    weights = load_file(llama / "model.safetensors")
    named: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        for theirs, ours in (
            ("model.embed_tokens", "model.tok_embeddings"),
            ("lm_head", "output"),
            ("self_attn.o_proj", "attention.wo"),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            name = name.replace(theirs, ours)
        named[name] = weight
    for i in range(2):
        prefix = f"model.layers.{i}"
        query, key, value = (named.pop(f"{prefix}.self_attn.{letter}_proj.weight") for letter in "qkv")
        groups = [query.view(2, 2, 16, 64), key.view(2, 1, 16, 64), value.view(2, 1, 16, 64)]
        named[f"{prefix}.attention.wqkv.weight"] = torch.cat(groups, dim=1).reshape(-1, 64)

    internlm = rewritten(
        llama,
        tmp_path,
        {"architectures": ["InternLM2ForCausalLM"], "bias": False, "hidden_act": "silu"},
        named,
    )

    assert answers(internlm) == answers(llama)


def test_internlm_3_is_a_llama_with_biases(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    llama = write_tiny(
        tmp_path_factory.mktemp("llama"), "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}
    )

    internlm = rewritten(
        llama,
        tmp_path,
        {"architectures": ["InternLM3ForCausalLM"], "bias": True, "qkv_bias": True},
        load_file(llama / "model.safetensors"),
    )

    assert answers(internlm) == answers(llama)


@pytest.mark.parametrize(
    ("architecture", "prefix", "buffer"),
    [("GPT2LMHeadModel", "transformer.", "attn.bias"), ("OPTForCausalLM", "model.", "")],
)
def test_a_checkpoint_that_was_saved_without_its_prefix_is_read(
    architecture: str, prefix: str, buffer: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = write_tiny(tmp_path_factory.mktemp("whole"), architecture, {"tie_word_embeddings": True})
    weights = {
        name.removeprefix(prefix): weight for name, weight in load_file(whole / "model.safetensors").items()
    }
    if buffer:  # what older releases of transformers saved besides
        weights[f"h.0.{buffer}"] = torch.ones(1, 1, 8, 8)

    bare = rewritten(whole, tmp_path, {}, weights)

    assert answers(bare) == answers(whole)


def test_a_head_that_is_stored_though_the_family_ties_it_is_left_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tied = write_tiny(tmp_path_factory.mktemp("tied"), "GemmaForCausalLM", {"tie_word_embeddings": True})
    written = json.loads((tied / "config.json").read_text())
    written.pop("tie_word_embeddings", None)
    (tied / "config.json").write_text(json.dumps(written))
    weights = load_file(tied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    assert answers(rewritten(tied, tmp_path, {}, weights)) == answers(tied)


@pytest.mark.parametrize(
    ("architecture", "config", "key"),
    [
        ("LlamaForCausalLM", {"hidden_act": "swish9"}, "hidden_act"),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "spiral"}}, "rope_type"),
        ("FalconForCausalLM", {"alibi": True}, "alibi"),
        ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("Gemma3ForCausalLM", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("Cohere2ForCausalLM", {"sliding_window": 0}, "sliding_window"),
        ("GPT2LMHeadModel", {"n_head": "four"}, "n_head"),
    ],
)
def test_a_config_that_a_family_cannot_take_is_refused_by_its_key(
    architecture: str,
    config: dict[str, Any],
    key: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    good = write_tiny(tmp_path_factory.mktemp("good"), architecture, {})

    bad = rewritten(good, tmp_path, config, load_file(good / "model.safetensors"))

    with pytest.raises(ConfigError, match=key):
        LLM(str(bad), platform="cpu", dtype="float32", skip_tokenizer_init=True, model_impl="native")


def test_what_is_declared_was_tried() -> None:
    names = json.loads((Path(__file__).parents[1] / "docs" / "models.json").read_text())["tried"].keys()
    declared = {
        name
        for name in load_plugins().architectures
        if not name.endswith(("Model", "ForMaskedLM", "ForSequenceClassification"))
    }
    assert declared - names <= {"InternLM2ForCausalLM", "InternLM3ForCausalLM", "GritLM"}
