"""Mixtures of experts beneath the attention of dense families: Mixtral, Phi-MoE, Granite-MoE, OLMoE, DBRX."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from core.contracts.kernels import Routing
from core.contracts.model import ModelDescription
from core.errors import ConfigError
from core.layers.moe import MoeSettings
from core.layers.reading import Reading, decoder
from core.layers.settings import LayerSettings, MlpSettings, NormSettings
from models.gguf import EXPERTS, Metadata, Values, gguf_mapping
from models.llama import GRANITE_SCALES, LLAMA_GGUF, MIXTRAL_NAMES, granite
from models.mixture import mixture, softmax_routing


def _numbered(read: Reading, prefix: str, routing: Routing) -> MoeSettings:
    """Mixtral's names: w1 is the gate, w3 goes up and w2 down."""
    experts = f"{prefix}.experts.{{e}}"
    return mixture(
        read,
        prefix,
        routing,
        experts="num_local_experts",
        up=(f"{experts}.w1.weight", f"{experts}.w3.weight"),
        down=f"{experts}.w2.weight",
        intermediate_size=read.intermediate,
    )


def _mixtral(read: Reading) -> ModelDescription:
    routing = softmax_routing(read, normalized=True)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(prefix, mlp=_numbered(read, f"{prefix}.block_sparse_moe", routing))

    return read.describe(layer, lambda i: read.shape(sliding_window=read.windows[i]))


def _phimoe(read: Reading) -> ModelDescription:
    """Layer norms, and experts that are chosen one after the other."""
    read.expect("num_experts_per_tok", expected=2, why="chooses 2 experts")
    margin = 2 * read.number("router_jitter_noise", 0.01)
    routing = softmax_routing(read, scoring="sparsemixer", margin=margin)
    norm = partial(read.norm, kind="layer", bias=True)

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        return read.layer(
            prefix,
            mlp=_numbered(read, f"{prefix}.block_sparse_moe", routing),
            input_norm=norm(f"{prefix}.input_layernorm"),
            mlp_norm=norm(f"{prefix}.post_attention_layernorm"),
        )

    return read.describe(
        layer,
        lambda i: read.shape(sliding_window=read.windows[i]),
        norm=norm("model.norm"),
        head_bias=read.flag("lm_head_bias"),
    )


def _granite_moe(read: Reading) -> ModelDescription:
    """All experts of a layer lie in one weight, and so does the gate with what goes up; some share an MLP."""
    routing = softmax_routing(read, normalized=True)
    shared = read.value("shared_intermediate_size", 0)
    stacked = read.arranged("stacked", usual=True)

    def experts(prefix: str) -> MoeSettings:
        moe = f"{prefix}.block_sparse_moe"
        fused = {"up": (f"{moe}.input_linear.weight",), "down": f"{moe}.output_linear.weight"}
        return mixture(
            read,
            moe,
            routing,
            experts="num_local_experts",
            router=f"{moe}.router.layer",
            intermediate_size=read.intermediate,
            shared=_shared(f"{prefix}.shared_mlp") if shared else None,
            **(fused if stacked else {}),
        )

    def _shared(prefix: str) -> MlpSettings:
        width = read.positive("shared_intermediate_size")
        fused = {"up": (f"{prefix}.input_linear",), "down": f"{prefix}.output_linear"}
        return read.mlp(prefix, intermediate_size=width, **(fused if stacked else {}))

    return granite(read, experts)


def _olmoe(read: Reading) -> ModelDescription:
    """Norms over all queries and over all keys at once."""
    read.expect("clip_qkv", expected=None, why="does not clip queries, keys and values")
    routing = softmax_routing(read, normalized=read.flag("norm_topk_prob"))

    def layer(i: int) -> LayerSettings:
        prefix = f"model.layers.{i}"
        attention = f"{prefix}.self_attn"
        mixer = read.attention(
            attention,
            query_norm=read.norm(f"{attention}.q_norm", size=read.heads * read.head_dim),
            key_norm=read.norm(f"{attention}.k_norm", size=read.kv_heads * read.head_dim),
        )
        width = read.intermediate
        return read.layer(
            prefix, mixer=mixer, mlp=mixture(read, f"{prefix}.mlp", routing, intermediate_size=width)
        )

    return read.describe(layer)


_DBRX_FFN = {"moe_normalize_expert_weights": 1.0}


def _dbrx(read: Reading) -> ModelDescription:
    """Names and nested configs of its own; all experts of a layer lie in one weight."""
    attention, ffn = _part(read, "attn_config", {}), _part(read, "ffn_config", _DBRX_FFN)
    normalized = ffn.value("moe_normalize_expert_weights") is not None
    ffn.expect("moe_normalize_expert_weights", expected=1, why="divides weights by their sum")
    routing = Routing(top_k=ffn.positive("moe_top_k"), normalized=normalized)
    theta = {"rope_theta": attention.number("rope_theta", 10000.0)}
    rotary = read.rotary(block=read.value("rope_parameters") or theta)

    def layer(i: int) -> LayerSettings:
        prefix = f"transformer.blocks.{i}"
        mixer = read.attention(
            prefix,
            qkv=(f"{prefix}.norm_attn_norm.attn.Wqkv",),
            output=f"{prefix}.norm_attn_norm.attn.out_proj",
            clip=attention.optional("clip_qkv"),
            rotary=rotary,
        )
        return read.layer(
            prefix,
            mixer=mixer,
            mlp=_dbrx_experts(ffn, f"{prefix}.ffn", routing, stacked=read.arranged("stacked", usual=True)),
            input_norm=_plain_norm(read, f"{prefix}.norm_attn_norm.norm_1"),
            mlp_norm=_plain_norm(read, f"{prefix}.norm_attn_norm.norm_2"),
        )

    kv_heads = attention.positive("kv_n_heads")
    if read.heads % kv_heads:
        raise ConfigError(f"n_heads {read.heads} is not a multiple of kv_n_heads {kv_heads}")
    return read.describe(
        layer,
        lambda i: read.shape(num_kv_heads=kv_heads),
        prefix="transformer.",
        embedding="transformer.wte",
        norm=_plain_norm(read, "transformer.norm_f"),
    )


def _part(read: Reading, key: str, defaults: Mapping[str, Any]) -> Reading:
    """A config within the config."""
    given: Any = read.value(key)
    if not isinstance(given, dict):
        raise ConfigError(f"config.json: {key} is {given!r:.80}; an object is expected")
    named = (given.get("ffn_act_fn") or {}).get("name", "silu")
    return Reading(read.architecture, given, {"hidden_act": named, "kv_n_heads": 1, **defaults})


def _plain_norm(read: Reading, name: str) -> NormSettings:
    return NormSettings(name=name, size=read.hidden, eps=1e-5, kind="layer")


def _dbrx_experts(ffn: Reading, prefix: str, routing: Routing, *, stacked: bool) -> MoeSettings:
    experts = f"{prefix}.experts.mlp"
    fused = {"up": (f"{experts}.w1", f"{experts}.v1"), "down": f"{experts}.w2", "down_transposed": True}
    return mixture(
        ffn,
        prefix,
        routing,
        experts="moe_num_experts",
        router=f"{prefix}.router.layer",
        intermediate_size=ffn.positive("ffn_hidden_size"),
        **(fused if stacked else {}),
    )


_DBRX_KEYS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
}
_LOCAL_EXPERTS = {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}


def _dbrx_parts(metadata: Metadata) -> Values:
    """The configs within the config; weights are divided by their sum in the models that there are."""
    return {
        "attn_config": {
            "kv_n_heads": metadata.whole("attention.head_count_kv", 1),
            "clip_qkv": metadata.value("attention.clamp_kqv"),
            "rope_theta": metadata.value("rope.freq_base"),
        },
        "ffn_config": {
            "ffn_hidden_size": metadata.whole("feed_forward_length"),
            "moe_num_experts": metadata.whole("expert_count"),
            "moe_top_k": metadata.whole("expert_used_count"),
            "moe_normalize_expert_weights": 1,
        },
    }


MIXTRAL = decoder(
    "MixtralForCausalLM",
    "mixtral",
    _mixtral,
    defaults={
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
    },
    gguf=LLAMA_GGUF,
)
PHIMOE = decoder(
    "PhimoeForCausalLM",
    "mixtral",
    _phimoe,
    defaults={
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
    },
    gguf=gguf_mapping(
        "phimoe",
        "PhimoeForCausalLM",
        names=MIXTRAL_NAMES,
        also=_LOCAL_EXPERTS,
        more=lambda metadata: {"lm_head_bias": "output.bias" in metadata.tensors},
    ),
)
GRANITE_MOE = decoder(
    "GraniteMoeForCausalLM",
    "mixtral",
    _granite_moe,
    gguf=gguf_mapping(
        "granitemoe",
        "GraniteMoeForCausalLM",
        names={
            "ffn_gate_inp": "block_sparse_moe.router.layer",
            "ffn_gate_exps": "block_sparse_moe.experts.{e}.gate_proj",
            "ffn_up_exps": "block_sparse_moe.experts.{e}.up_proj",
            "ffn_down_exps": "block_sparse_moe.experts.{e}.down_proj",
            "ffn_gate_shexp": "shared_mlp.gate_proj",
            "ffn_up_shexp": "shared_mlp.up_proj",
            "ffn_down_shexp": "shared_mlp.down_proj",
        },
        permuted=True,
        also=GRANITE_SCALES
        | _LOCAL_EXPERTS
        | {"shared_intermediate_size": "expert_shared_feed_forward_length"},
        arrangement={"stacked": False},
    ),
)
GRANITE_MOE_SHARED = decoder("GraniteMoeSharedForCausalLM", "mixtral", _granite_moe)
OLMOE = decoder(
    "OlmoeForCausalLM",
    "mixtral",
    _olmoe,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    gguf=gguf_mapping("olmoe", "OlmoeForCausalLM", also=EXPERTS),
)
DBRX = decoder(
    "DbrxForCausalLM",
    "mixtral",
    _dbrx,
    keys=_DBRX_KEYS,
    gguf=gguf_mapping(
        "dbrx",
        "DbrxForCausalLM",
        names={
            "token_embd": "transformer.wte",
            "output_norm": "transformer.norm_f",
            "attn_norm": "norm_attn_norm.norm_1",
            "attn_qkv": "norm_attn_norm.attn.Wqkv",
            "attn_output": "norm_attn_norm.attn.out_proj",
            "attn_output_norm": "norm_attn_norm.norm_2",
            "ffn_gate_inp": "ffn.router.layer",
            "ffn_gate_exps": "ffn.experts.{e}.gate_proj",
            "ffn_up_exps": "ffn.experts.{e}.up_proj",
            "ffn_down_exps": "ffn.experts.{e}.down_proj",
        },
        layer="transformer.blocks.{i}",
        layer_norms=True,
        keys=_DBRX_KEYS,
        arrangement={"stacked": False},
        more=_dbrx_parts,
    ),
)

ALL = [MIXTRAL, PHIMOE, GRANITE_MOE, GRANITE_MOE_SHARED, OLMOE, DBRX]
