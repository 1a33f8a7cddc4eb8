"""Configs leave out what is their class's default: a family must know the same defaults, or it is another model."""

from dataclasses import asdict
from typing import Any

import pytest

from core.discovery import load_plugins
from core.errors import ConfigError

_KEPT = {
    *("architectures", "model_type", "vocab_size", "dtype", "attn_config", "ffn_config"),
    *("hidden_size", "n_embd", "n_embed", "d_model"),
    *("num_hidden_layers", "n_layer", "n_layers"),
    *("num_attention_heads", "n_head", "n_heads"),
    *("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"),
    *(
        "shared_expert_intermediate_size",
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "num_experts_per_tok",
    ),
    *("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"),
    *("max_seq_len", "n_positions", "topk_method", "shared_intermediate_size", "state_size"),
}
"""Sizes, which every config of such a model names."""


def decoders() -> list[str]:
    import transformers

    apart = ("Model", "MaskedLM", "Classification")  # encoders and what is made of decoders
    names = [name for name in load_plugins().architectures if not name.endswith(apart)]
    return [name for name in names if hasattr(transformers, name)]


@pytest.mark.parametrize("name", decoders())
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    import transformers

    config_class: Any = getattr(transformers, name).config_class
    whole: dict[str, Any] = {**config_class().to_dict(), "architectures": [name], "dtype": "float32"}
    whole |= {key: 2 for key in ("num_experts_per_tok",) if key in whole and whole[key] is None}
    short = {key: value for key, value in whole.items() if key in _KEPT and value is not None}
    describe = load_plugins().architectures[name].describe

    assert differences("", described(describe(short)), described(describe(whole))) == {}


def described(description: Any) -> dict[str, Any]:
    """All of it as plain data, a layer of each kind."""
    data = asdict(description)
    data["settings"]["layers"] = data["settings"]["layers"][:6]
    return data


def differences(path: str, found: Any, wanted: Any) -> dict[str, Any]:
    """By path, what is not the same. A rotation's base and share are told twice, and compared where they are used."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in found | wanted if key not in ("rope_theta", "partial_rotary_factor")]
        parts = [(f"{path}.{key}", found.get(key), wanted.get(key)) for key in keys]
    elif isinstance(found, tuple) and isinstance(wanted, tuple) and len(found) == len(wanted):
        parts = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        return {} if found == wanted else {path: (found, wanted)}
    return {key: value for part in parts for key, value in differences(*part).items()}


def tiny(name: str, **changes: Any) -> dict[str, Any]:
    import transformers

    config_class: Any = getattr(transformers, name).config_class
    return {**config_class().to_dict(), "architectures": [name], **changes}


def test_null_is_another_thing_than_what_is_left_out() -> None:
    describe = load_plugins().architectures["Gemma2ForCausalLM"].describe

    shape = describe(
        tiny("Gemma2ForCausalLM", attn_logit_softcapping=None, layer_types=None, sliding_window=None)
    )

    assert {(layer.soft_cap, layer.sliding_window) for layer in shape.layers} == {(None, None)}


def test_experts_of_dbrx_are_weighted_by_their_share_unless_the_config_says_null() -> None:
    config, describe = tiny("DbrxForCausalLM"), load_plugins().architectures["DbrxForCausalLM"].describe

    def normalized(**ffn: Any) -> bool:
        parts = {key: value for key, value in config["ffn_config"].items() if not key.startswith("moe_norm")}
        return describe({**config, "ffn_config": parts | ffn}).settings.layers[0].mlp.routing.normalized

    assert normalized() and not normalized(moe_normalize_expert_weights=None)


def test_the_first_configs_of_bloom_are_read() -> None:
    config = tiny("BloomForCausalLM")
    old = {key: value for key, value in config.items() if key not in ("hidden_size", "n_head")}

    described = (
        load_plugins()
        .architectures["BloomForCausalLM"]
        .describe({**old, "n_embed": 64, "num_attention_heads": 8})
    )

    assert (described.hidden_size, described.layers[0].num_heads) == (64, 8)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"rope_type": "linear"}, "factor is None"),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0]},
            "short_factor",
        ),
        ({"full_attention": {"rope_theta": 1.0}}, "one block for all layers"),
        ({"rope_type": "llama3", "factor": "eight"}, "factor is 'eight'"),
    ],
)
def test_a_rotation_that_lacks_something_is_refused_before_a_weight_is_read(
    block: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_plugins().architectures["LlamaForCausalLM"].describe(
            tiny("LlamaForCausalLM", rope_parameters=block)
        )
