"""What llama.cpp's converter does to each family, stated once more: names from the `gguf` package, and the facts below.

Written without a look at our mappings, from which it must stay apart: it is what they are compared with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from gguf import (
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    dequantize,
    get_tensor_name_map,
    quantize,
)
from gguf_files import interleaved, write_to_disk
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

State: TypeAlias = dict[str, Tensor]
Metadata: TypeAlias = dict[str, Any]


def unchanged(state: State, config: Any) -> State:
    return state


def nothing_more(config: Any) -> Metadata:
    return {}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How one architecture of transformers becomes a GGUF file.

    architecture  of transformers, a class name
    gguf          `general.architecture`
    weights       what is done to the weights, still under their own names
    metadata      keys beside those that all have, without the architecture's name
    changes       to the tiny config
    leaves_out    keys that all others have
    """

    architecture: str
    gguf: str
    weights: Callable[[State, Any], State] = unchanged
    metadata: Callable[[Any], Metadata] = nothing_more
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    leaves_out: tuple[str, ...] = ()


def write_gguf(
    path: Path, conversion: Conversion, folder: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32
) -> Path:
    """The model of a folder as llama.cpp's converter would write it, its matrices in this type."""
    config = AutoConfig.from_pretrained(folder)
    writer = GGUFWriter(path, conversion.gguf)
    for key, value in _metadata(conversion, config).items():
        _add(writer, f"{conversion.gguf}.{key}", value)
    stored = load_file(folder / "model.safetensors")
    for name, tensor in _named(conversion, conversion.weights(stored, config)).items():
        array = np.ascontiguousarray(tensor.float().squeeze().numpy())
        if array.ndim < 2 or kind is GGMLQuantizationType.F32 or "norm" in name:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    write_to_disk(writer)
    return path


def as_quantised(model: Any, kind: GGMLQuantizationType, *, transposed: bool = False) -> None:
    """Makes of the model's matrices what is left of them after `write_gguf` with this type."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                turn = transposed and ".c_" in name
                stored = (parameter.t() if turn else parameter).contiguous().numpy()
                left = torch.from_numpy(dequantize(quantize(stored, kind), kind))
                parameter.copy_(left.t() if turn else left)


def _named(conversion: Conversion, state: State) -> State:
    architecture = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[conversion.gguf]
    table = get_tensor_name_map(architecture, 16)
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) or name for name in state}
    return {found[name]: tensor for name, tensor in state.items()}


def _metadata(conversion: Conversion, config: Any) -> Metadata:
    rope = _rope(config)
    eps = next(
        (e for e in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon") if hasattr(config, e)), None
    )
    inner = [getattr(config, name, None) for name in ("intermediate_size", "ffn_hidden_size", "n_inner")]
    values: Metadata = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", 512),
        "embedding_length": config.hidden_size,
        "feed_forward_length": next((size for size in inner if size), 4 * config.hidden_size),
        "attention.head_count": getattr(config, "num_attention_heads", None),
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.value_length": getattr(config, "head_dim", None),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": None if eps is None else getattr(config, eps),
        "rope.freq_base": rope.get("rope_theta"),
    }
    values = {key: value for key, value in values.items() if key not in conversion.leaves_out}
    return {k: v for k, v in (values | conversion.metadata(config)).items() if v is not None}


def _rope(config: Any) -> Metadata:
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return parameters.get("full_attention", parameters)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    for kind, add in (
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    ):
        if isinstance(value, kind):
            return add(key, value)
    raise TypeError(f"{key} is {value!r}")


def permute(state: State, config: Any) -> State:
    """Rows of queries and keys, so that neighbours are rotated together: Llama and its kin."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def permuted(name: str, tensor: Tensor) -> Tensor:
        count = heads.get(name.split(".")[-2])
        return tensor if count is None else torch.from_numpy(interleaved(tensor.numpy(), count))

    return {name: permuted(name, tensor) for name, tensor in state.items()}


def whole_norms(state: State, config: Any) -> State:
    """Gemma's norms, which it stores as what they exceed one by."""
    return {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in state.items()}


def stack_experts(state: State, config: Any) -> State:
    """What is one weight for each expert becomes one for all."""
    stacked: State = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".experts.")
        number, _, projection = rest.partition(".")
        if number == "0":
            others = [f"{module}.experts.{e}.{projection}" for e in range(len(state))]
            each = [state[other] for other in others if other in state]
            stacked[f"{module}.experts.{projection}"] = torch.stack(each)
        elif not rest:
            stacked[name] = tensor
    return stacked


def of_mixtral(state: State, config: Any) -> State:
    return stack_experts(permute(state, config), config)


def of_glm4_moe(state: State, config: Any) -> State:
    """The bias of the router's scores gets the ending that GGUF has for it."""
    ending = {"e_score_correction_bias": "e_score_correction.bias"}
    stacked = stack_experts(state, config)
    return {".".join(ending.get(part, part) for part in name.split(".")): t for name, t in stacked.items()}


def of_deepseek(state: State, config: Any) -> State:
    """What makes keys of the vector, turned, and what makes values of it become two."""
    split: State = {}
    sizes = (config.qk_nope_head_dim, config.v_head_dim)
    for name, tensor in of_glm4_moe(state, config).items():
        if ".kv_b_proj." in name:
            heads = tensor.view(config.num_attention_heads, sum(sizes), -1)
            keys, values = heads.split_with_sizes(sizes, dim=1)
            split[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
            split[name.replace("kv_b_proj", "v_b_proj")] = values
        else:
            split[name] = tensor
    return split


def of_granite_moe(state: State, config: Any) -> State:
    """Gates, which lie before what goes up, become weights of their own."""
    split: State = {}
    for name, tensor in permute(state, config).items():
        layer = ".".join(name.split(".")[:3])
        for fused, apart in ((".block_sparse_moe.", "mlp.experts"), (".shared_mlp.", "mlp.shared_expert")):
            if fused in name and ".input_linear." in name:
                halves = tensor.chunk(2, dim=-2)
                for projection, half in zip(("gate_proj", "up_proj"), halves, strict=True):
                    split[f"{layer}.{apart}.{projection}.weight"] = half
                break
        else:
            split[name] = tensor
    return split


def of_mamba(state: State, config: Any) -> State:
    """What a state decays by is no logarithm."""
    return {name: -tensor.exp() if name.endswith("A_log") else tensor for name, tensor in state.items()}


def of_jamba(state: State, config: Any) -> State:
    """A layer whose only expert is every token's has an MLP."""
    stacked = stack_experts(of_mamba(state, config), config)
    return {name.replace(".feed_forward.experts.", ".mlp.experts."): t for name, t in stacked.items()}


def of_dbrx(state: State, config: Any) -> State:
    """Experts as [number, out, in]; what goes down is stored as [number, in, out]."""
    experts = config.ffn_config.moe_num_experts
    found: State = {}
    for name, tensor in state.items():
        if ".experts.mlp." in name:
            each = tensor.view(experts, -1, tensor.shape[-1])
            found[f"{name}.weight"] = each.transpose(1, 2) if name.endswith(".w2") else each
        else:
            found[name] = tensor
    return found


def transpose(state: State, config: Any) -> State:
    """GPT-2's projections, which it stores as [in, out]."""
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return {name: tensor.t() if name.endswith(turned) else tensor for name, tensor in state.items()}


def ungroup(state: State, config: Any) -> State:
    """Rows of the fused projection: all queries, then all keys, then all values."""
    heads, kv_heads = config.num_attention_heads, kv_heads_of(config)

    def ungrouped(tensor: Tensor) -> Tensor:
        groups = tensor.reshape(kv_heads, heads // kv_heads + 2, -1, *tensor.shape[1:])
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
        return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])

    return {n: ungrouped(t) if "query_key_value" in n else t for n, t in state.items()}


def kv_heads_of(config: Any) -> int:
    """Of Falcon's two releases; all heads, of others."""
    if getattr(config, "new_decoder_architecture", False):
        return config.num_kv_heads
    return 1 if getattr(config, "multi_query", False) else config.num_attention_heads


def of_bloom(state: State, config: Any) -> State:
    return {name.removeprefix("transformer."): tensor for name, tensor in ungroup(state, config).items()}


def stack_norms(state: State, config: Any) -> State:
    """StableLM's norms of each head's own become one tensor, [heads, head_dim]."""
    stacked: State = {}
    for name, tensor in state.items():
        module, _, number = name.removesuffix(".weight").partition(".norms.")
        if not number:
            stacked[name] = tensor
        elif number == "0":
            count = sum(other.startswith(f"{module}.norms.") for other in state)
            stacked[f"{module}.weight"] = torch.stack(
                [state[f"{module}.norms.{i}.weight"] for i in range(count)]
            )
    return stacked


def long_factors(state: State, config: Any) -> State:
    """LongRoPE's divisors are tensors."""
    rope = _rope(config)
    factors = {
        f"rope_factors_{length}.weight": torch.tensor(rope[f"{length}_factor"])
        for length in ("long", "short")
        if rope.get(f"{length}_factor")
    }
    return state | factors


def fuse(state: State, config: Any) -> State:
    """Queries, keys and values in one tensor, as older files have it."""
    fused = dict(state)
    for name in state:
        if ".q_proj." in name:
            parts = [fused.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
            fused[name.replace("model.layers", "blk").replace("self_attn.q_proj", "attn_qkv")] = torch.cat(
                parts
            )
    return fused


def rotated(config: Any) -> Metadata:
    """How many numbers of a head are rotated."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"rope.dimension_count": int(_rope(config).get("partial_rotary_factor", 1.0) * head_dim)}
