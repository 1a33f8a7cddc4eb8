"""From a checkpoint's config to the transformers class that runs it, or the reason why none can.

Nothing of the checkpoint is run unless the user trusts its code.
"""

from collections.abc import Mapping
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from core.contracts.model import Architecture, Model, ModelDescription, Parts, Weights
from core.errors import ConfigError, UnsupportedArchitecture
from models.fallback.attention import Paged
from models.fallback.loading import load
from models.fallback.model import TransformersModel
from models.fallback.tracing import context_of, trace

FAMILY = "transformers' own code: attention, cache and linear layers by the platform, the rest by torch"

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# Keys by which a config could choose code that is fetched from elsewhere, or how it is loaded.
_OURS_TO_SAY = frozenset(
    {"attn_implementation", "experts_implementation", "fusion_config", "kernel_config", "use_kernels"}
    | {"transformers_weights", "distributed_config", "quantization_config"}
)
_SWITCHING = ("longrope", "dynamic")


def claim(folder: Path, config: Mapping[str, Any], trusted: bool) -> Architecture:
    """The architecture of one checkpoint, traced. See `core.contracts.model.ModelFallback`."""
    name = str(config["architectures"][0])
    if folder.is_file():
        raise UnsupportedArchitecture("it reads no GGUF; give the folder with config.json and *.safetensors")
    model_class = _model_class(name, folder, config, trusted)
    values = _read(model_class, config)
    _refuse(model_class, values)
    traced = trace(model_class, deepcopy(values))
    description = ModelDescription(
        architecture=name,
        vocab_size=traced.vocab_size,
        hidden_size=traced.hidden_size,
        context=_context(values) - traced.first_position,
        dtype=str(values.dtype or "float32").removeprefix("torch."),
        layers=traced.layers,
        num_parameters=traced.num_parameters,
    )

    def describe(config: Mapping[str, Any]) -> ModelDescription:
        return description

    def build(description: ModelDescription, weights: Weights, parts: Parts) -> Model:
        attention = [each for each in parts.attention if each is not None]
        model = load(model_class, values, traced, weights, parts)
        return TransformersModel(model, Paged(attention), traced.first_position)

    return Architecture(name=name, family=FAMILY, describe=describe, build=build)


def _model_class(name: str, folder: Path, config: Mapping[str, Any], trusted: bool) -> type[Any]:
    if config.get("is_encoder_decoder"):
        raise UnsupportedArchitecture("it reads with an encoder; only decoders go on with a text here")
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return getattr(transformers, name)
    given: Any = config.get("auto_map")
    reference: Any = given.get("AutoModelForCausalLM") if isinstance(given, dict) else None
    if reference is None:
        known = "is no causal language model there" if hasattr(transformers, name) else "is unknown to it"
        raise UnsupportedArchitecture(f"{name} {known} (transformers {transformers.__version__})")
    if not isinstance(reference, str) or "--" in reference:
        raise UnsupportedArchitecture(f"its code is elsewhere ({reference!r:.80}); only its own is run")
    if not trusted:
        raise UnsupportedArchitecture(
            f"the model comes with code of its own ({reference}), which is run with trust_remote_code only"
        )
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        return get_class_from_dynamic_module(reference, str(folder))
    except Exception as error:  # whatever that code raises
        raise UnsupportedArchitecture(f"the model's own code does not load: {error}") from error


def _read(model_class: type[Any], config: Mapping[str, Any]) -> Any:
    """The config as transformers understands it. Raises ConfigError with what it objects to."""
    kind: Any = config.get("model_type")
    known = kind in CONFIG_MAPPING  # which answers by importing, and has no default to give
    config_class: Any = CONFIG_MAPPING[kind] if known else model_class.config_class
    kept = {key: value for key, value in config.items() if key not in _OURS_TO_SAY and key[0] != "_"}
    try:
        return config_class.from_dict(deepcopy(kept))
    except Exception as error:
        raise ConfigError(f"config.json: transformers does not accept it: {error}") from error


def _refuse(model_class: type[Any], config: Any) -> None:
    """What the class and the config say of themselves."""
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if kinds:
        raise UnsupportedArchitecture(
            f"it has layers of {', '.join(sorted(kinds))}, of which it knows nothing"
        )
    if model_class._is_stateful:
        raise UnsupportedArchitecture("it keeps a recurrent state")
    if "position_ids" not in signature(model_class.forward).parameters:
        raise UnsupportedArchitecture("its code cannot be told the positions of tokens")


def _context(config: Any) -> int:
    """Longest sequence. Frequencies that change with the length of a step are kept to those of short ones."""
    text = config.get_text_config(decoder=True)
    context = context_of(text)
    rope: Any = getattr(text, "rope_parameters", None) or {}
    for scaling in (rope, *(each for each in rope.values() if isinstance(each, Mapping))):
        if scaling.get("rope_type") in _SWITCHING:
            context = min(context, int(scaling.get("original_max_position_embeddings") or context))
    return context
