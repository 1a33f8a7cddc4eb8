"""Small random models, written in a moment: what the kit runs whole where a real model would take too long.

A folder as everybody's, in safetensors. Knows the names of a Llama's weights and their shapes, and computes nothing:
the architecture that reads it is a plugin, found as every other.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What is written unless it is changed."""

_SPREAD = 0.2  # of weights: wide enough that the likeliest token is clearly so, and another in every step


def write_tiny_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write config.json, generation_config.json and model.safetensors; returns the folder. No tokenizer.

    seed     the same one gives the same bytes
    changes  keys of config.json, over CONFIG; with a sliding_window it is a Mistral, whose config has one
    """
    config = {**CONFIG, **changes}
    if config.get("sliding_window") is not None and "architectures" not in changes:
        config["architectures"] = ["MistralForCausalLM"]
    # The older generator, because its numbers are the same in every version of numpy.
    source = np.random.RandomState(seed)
    weights = {name: _weight(source, name, shape) for name, shape in _shapes(config)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    return folder


def _weight(source: np.random.RandomState, name: str, shape: tuple[int, ...]) -> "NDArray[np.float32]":
    noise = source.standard_normal(shape)
    values = 1.0 + 0.1 * noise if name.endswith("norm.weight") else _SPREAD * noise
    return np.ascontiguousarray(values, dtype=np.float32)


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight by its name, in an order that is always the same."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        yield from ((f"model.layers.{layer}.{name}.weight", shape) for name, shape in shapes.items())
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
