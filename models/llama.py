"""Llama and its kin: Llama 1 to 3.2, SmolLM, Yi, Mistral, Qwen2, Qwen2.5, Qwen3."""

from collections.abc import Mapping
from typing import Any

from models.gguf import gguf_mapping
from models.settings import Config, Differences, decoder


def _everywhere(config: Config) -> tuple[int | None, ...]:
    """One window for all layers, when the config names one."""
    return (config.get("sliding_window"),) * int(config["num_hidden_layers"])


def _by_layer(config: Config) -> tuple[int | None, ...]:
    """A window where `layer_types` says so; in older configs, from layer `max_window_layers` on."""
    count, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if not config.get("use_sliding_window", False) or window is None:
        return (None,) * count
    first = config.get("max_window_layers", count)
    kinds = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * (count - first)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:count])


def _never(config: Mapping[str, Any]) -> bool:
    return False


def _always(config: Mapping[str, Any]) -> bool:
    return True


LLAMA = decoder(
    "LlamaForCausalLM", "llama", Differences(), gguf_mapping("llama", "LlamaForCausalLM", interleaved=True)
)
MISTRAL = decoder(
    "MistralForCausalLM", "llama", Differences(windows=_everywhere, qkv_bias=_never, output_bias=_never)
)
QWEN2 = decoder(
    "Qwen2ForCausalLM",
    "llama",
    Differences(qkv_bias=_always, output_bias=_never, windows=_by_layer),
    gguf_mapping("qwen2", "Qwen2ForCausalLM"),
)
QWEN3 = decoder(
    "Qwen3ForCausalLM",
    "llama",
    Differences(qk_norm=True, windows=_by_layer),
    gguf_mapping("qwen3", "Qwen3ForCausalLM"),
)
